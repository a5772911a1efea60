"""A window in host memory, for windows that would crowd the device. Its functions are called outside jit.

Snapshots are trees in pinned memory where the backend has it, sharded as the parameters are: every process copies and
holds its own shards, of a replicated leaf one copy. The copies go on beside training; JAX keeps what they read from
until they have ended, also when a train step is given the parameters as donated memory meanwhile.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from weight_averaging.averages import Average
from weight_averaging.averages.schedule import is_due
from weight_averaging.averages.summation import pairwise_sum
from weight_averaging.jax.averager import Averager, check_step, settings_of
from weight_averaging.jax.trees import (
    Tree,
    all_finite,
    check_alike,
    check_averaged,
    dtype_of,
    is_averaged,
    single,
    single_type,
)
from weight_averaging.jax.window import divided
from weight_averaging.placement import on_host


class HostLAWAState(NamedTuple):
    """A window of snapshots in host memory. Structure, shapes and types never change.

    Attributes:
        snapshots: `window` trees like the parameters, float32: snapshot number n (0, 1, ...) is number n mod L. A leaf
            that is not averaged is float32[].
        steps, step, count, refused: as in LAWAState, in host memory too.
    """

    snapshots: tuple[Tree, ...]
    steps: np.ndarray
    step: np.ndarray
    count: np.ndarray  # type: ignore[assignment]
    refused: np.ndarray


def host_window_averager(average: Average, check_finite: bool) -> Averager:
    """`window_averager` with its window in host memory: the same averages, by functions to be called outside jit.

    On the device there are, while an average is made, the partial sums of one leaf (`summation.accumulators`) and the
    average. With `check_finite` an update that is due waits for the weights, to know whether they are finite;
    without it nothing waits.
    """
    interval, window, start = average.interval, average.held, average.start
    assert interval is not None
    assert window is not None
    nothing = np.zeros((), np.float32)  # in the place of a leaf that is not averaged

    def number(value: Any) -> np.ndarray:
        return np.array(value, np.int32)

    def init(params: Tree) -> HostLAWAState:
        _refuse_tracers(params)
        check_averaged(params)
        empty = jax.tree.map(
            lambda leaf: _to_host(jnp.zeros_like(leaf, single_type(leaf))) if is_averaged(leaf) else nothing,
            params,
        )
        return HostLAWAState((empty,) * window, np.zeros(window, np.int32), number(0), number(0), number(0))

    def update(state: HostLAWAState, params: Tree, step: int | Array) -> HostLAWAState:
        _refuse_tracers((state, params, step))
        check_alike(state.snapshots[0], params)
        check_step(step)
        step = int(step)
        last, state = int(state.step), state._replace(step=number(max(step, int(state.step))))
        if not is_due(step, interval, start) or step <= last:
            return state
        if check_finite and not _all_finite(params):
            return state._replace(refused=number(state.refused + 1))
        slot = int(state.count) % window
        taken = jax.tree.map(lambda leaf: _to_host(single(leaf)) if is_averaged(leaf) else nothing, params)
        steps = np.array(state.steps)
        steps[slot] = step
        snapshots = (*state.snapshots[:slot], taken, *state.snapshots[slot + 1 :])
        return state._replace(snapshots=snapshots, steps=steps, count=number(state.count + 1))

    def ready(state: HostLAWAState) -> Any:
        return state.count >= average.needed

    def average_of(state: HostLAWAState, params: Tree) -> Tree:
        _refuse_tracers((state, params))
        check_alike(state.snapshots[0], params)
        if not ready(state):
            return jax.tree.map(jnp.copy, params)
        count = int(state.count)
        held = [state.snapshots[number % window] for number in range(max(0, count - window), count)]

        def mean(leaf: Any, *values: Any) -> Array:
            if not is_averaged(leaf):
                return jnp.copy(leaf)
            on_device = (_to_device(value, leaf) for value in values)
            if average.is_mean:
                result: Array = _mean(pairwise_sum(on_device), len(values), dtype_of(leaf))
            else:
                shares = map(jnp.float32, average.coefficients(len(values)))
                result = pairwise_sum(one * share for one, share in zip(on_device, shares)).astype(dtype_of(leaf))
            return result

        return jax.tree.map(mean, params, *held)

    return Averager(init, update, average_of, ready, settings_of(average))


def goes_to_host(params: Tree, window: int, placement: str) -> bool:
    """Whether a window of snapshots of these parameters goes to host memory that is not the device's.

    Raises:
        MemoryError: the snapshots would not fit, before any is taken.
        ValueError: there is no such placement.
    """
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(params) if is_averaged(leaf)]
    check_averaged(params)
    shards = [(leaf, shard) for leaf in leaves for shard in leaf.addressable_shards]
    first, device = shards[0][1].device, _device_of(leaves[0])
    is_host = device.platform == "cpu"

    def bytes_of(host: bool) -> int:
        """Of a snapshot: on a device, or in this process' host memory."""
        mine = [(leaf, s) for leaf, s in shards if s.device == first or (host and not leaf.is_fully_replicated)]
        return sum(shard.data.size * np.dtype(single_type(leaf)).itemsize for leaf, shard in mine)

    count = sum(leaf.size for leaf in leaves)
    holds = f"a window of {window} snapshots of {count:,} weights"
    pinned = _host_kind(device) == "pinned_host" and not is_host
    free = 0 if is_host else _free_bytes(device)
    host = on_host(
        placement,
        window * bytes_of(False),
        holds,
        host_need=window * bytes_of(True),
        device=str(device),
        is_host=is_host,
        free=free,
        pinned=pinned,
    )
    return host and not is_host


def _refuse_tracers(given: Any) -> None:
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(given)):
        raise TypeError("a window in host memory cannot be part of jax.jit: call it outside, or use lawa")


def _to_host(leaf: Array) -> Any:
    """A copy in host memory, under way on return where that is pinned."""
    kind = _host_kind(_device_of(leaf))
    if leaf.is_fully_replicated:
        leaf = leaf.addressable_data(0)
    if kind is None:
        return np.array(leaf)
    return jax.device_put(leaf, leaf.sharding.with_memory_kind(kind), may_alias=False)


def _to_device(value: Any, leaf: Any) -> Array:
    """A snapshot's leaf where that of the parameters is."""
    leaf = jnp.asarray(leaf)  # one of NumPy's is where JAX would put it
    if not leaf.is_fully_replicated:
        there: Array = jax.device_put(value, leaf.sharding)
        return there
    copies = [jax.device_put(value, shard.data.sharding) for shard in leaf.addressable_shards]
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, copies)


def _device_of(leaf: Array) -> jax.Device:
    """One of this process' devices that have part of an array."""
    return leaf.addressable_shards[0].device


def _host_kind(device: jax.Device) -> str | None:
    """The host memory that a device copies to by itself; None if it has none."""
    kinds = [memory.kind for memory in device.addressable_memories()]
    return next((kind for kind in ("pinned_host", "unpinned_host") if kind in kinds), None)


def _free_bytes(device: jax.Device) -> int:
    statistics = device.memory_stats() or {}
    if "bytes_limit" not in statistics:
        return 1 << 62  # not known: the allocator will tell
    free: int = statistics["bytes_limit"] - statistics["bytes_in_use"]
    return free


_all_finite = jax.jit(all_finite)
_mean = jax.jit(lambda total, count, dtype: divided(total, count).astype(dtype), static_argnums=2)
