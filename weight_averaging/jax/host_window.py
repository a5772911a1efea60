"""A window in host memory, for windows that would crowd the device. Its functions are called outside jit.

Snapshots are trees in pinned memory where the backend has it, sharded as the parameters are. Every process copies and
holds its own shards, of a replicated leaf one copy. The copies go on beside training; JAX keeps what they read from
until they have ended, also when a train step is given the parameters as donated memory meanwhile.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from weight_averaging.averages.schedule import is_due
from weight_averaging.averages.summation import pairwise_sum
from weight_averaging.jax.averager import Averager
from weight_averaging.jax.checks import check_alike, check_averaged, check_state, checked, known, tell_of_restart
from weight_averaging.jax.trees import Tree, all_finite, average_type, dtype_of, each, is_averaged, real_type
from weight_averaging.jax.window import divided, held_steps, marked, of_other_settings
from weight_averaging.placement import on_host


class HostLAWAState(NamedTuple):
    """A window of snapshots in host memory. Structure, shapes and types never change.

    Attributes:
        snapshots: `window` trees like the parameters, float32 (float64 of such leaves): snapshot number n (0, 1, ...)
            is number n mod L. A leaf that is not averaged is bool[].
        steps, step, count, refused: as in LAWAState, in host memory too.
    """

    snapshots: tuple[Tree, ...]
    steps: np.ndarray
    step: np.ndarray
    count: np.ndarray  # type: ignore[assignment]
    refused: np.ndarray


class HostWindowAverager(Averager[HostLAWAState]):
    """`WindowAverager` with its window in host memory: the same averages, by functions to be called outside jit.

    On the device there are, while an average is made, the partial sums of one leaf (`summation.accumulators`) and the
    average. With `check_finite` an update that is due waits for the weights, to know whether they are finite. Without
    it nothing waits, but for a `step` that is an array and not computed yet.
    """

    state = HostLAWAState

    @property
    def window(self) -> int:
        assert self.described.held is not None
        return self.described.held

    def init(self, params: Tree) -> HostLAWAState:
        _refuse_tracers(params)
        check_averaged(params)
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros_like(leaf, average_type(leaf)) if is_averaged(leaf) else None, params
        )

        def empty() -> Tree:  # each in memory of its own: a function may be given the state as donated memory
            return jax.tree.map(
                lambda leaf, zero: _to_host(zero) if is_averaged(leaf) else np.zeros((), np.bool_), params, zeros
            )

        snapshots = tuple(empty() for _ in range(self.window))
        return HostLAWAState(snapshots, np.zeros(self.window, np.int32), *(_number(0) for _ in range(3)))

    def update(
        self, state: HostLAWAState, params: Tree, step: int | Array, *, learning_rate: Any = None, donate: bool = False
    ) -> HostLAWAState:
        del learning_rate, donate  # what a new state has in common with the old one is not on the device
        _refuse_tracers(step)
        self._check_like(state, params)
        step = checked(int(known(step)))
        last, state = int(state.step), state._replace(step=_number(max(step, int(state.step))))
        is_due_now = is_due(step, self.interval, self.described.start)
        if is_due_now and step < last and step != 0:
            tell_of_restart(last)
            return state._replace(refused=_number(state.refused + 1))
        is_first = step == last == int(state.count) == 0  # start=0: before training
        if not is_due_now or (step <= last and not is_first):
            return state
        if self.check_finite and not _all_finite(params, state.snapshots[0]):
            return state._replace(refused=_number(state.refused + 1))
        count, steps = int(state.count), np.array(state.steps)
        held, refused = marked(steps, count, np), int(state.refused)
        if of_other_settings(held, step, self.interval, self.described.start, refused, np):
            count, steps = 0, np.zeros_like(steps)
        slot = count % self.window
        taken = each(
            lambda leaf, own: _to_host(jnp.asarray(leaf, own.dtype)) if is_averaged(leaf) else own,
            params,
            state.snapshots[slot],
        )
        steps[slot] = step
        snapshots = (*state.snapshots[:slot], taken, *state.snapshots[slot + 1 :])
        return state._replace(snapshots=snapshots, steps=steps, count=_number(count + 1))

    def average(self, state: HostLAWAState, params: Tree) -> Tree:
        self._check_like(state, params)
        if not self.ready(state):
            return jax.tree.map(jnp.copy, params)
        count, average = int(state.count), self.described
        held = [state.snapshots[number % self.window] for number in range(max(0, count - self.window), count)]

        def mean(leaf: Any, *values: Any) -> Array:
            if not is_averaged(leaf):
                return jnp.copy(leaf)
            on_device = (_to_device(value, leaf) for value in values)
            if average.is_mean:
                result: Array = _mean(pairwise_sum(on_device), len(values), dtype_of(leaf))
            else:
                shares = map(real_type(values[0].dtype), average.coefficients(len(values)))
                result = pairwise_sum(one * share for one, share in zip(on_device, shares)).astype(dtype_of(leaf))
            return result

        return jax.tree.map(mean, params, *held)

    def snapshot_steps(self, state: HostLAWAState) -> list[int]:
        return held_steps(state.steps, state.count)

    def _check_like(self, state: HostLAWAState, params: Tree) -> None:
        _refuse_tracers((state, params))
        check_state(state, self.state)
        check_alike(state.snapshots[0], params, in_host=True)


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
        return sum(shard.data.size * np.dtype(average_type(leaf)).itemsize for leaf, shard in mine)

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


def _number(value: Any) -> np.ndarray:
    return np.array(value, np.int32)


def _refuse_tracers(given: Any) -> None:
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(given)):
        raise TypeError("a window in host memory cannot be part of jax.jit: call it outside, or use lawa")


def _to_host(leaf: Array) -> Any:
    """A copy in host memory, under way on return where that is pinned; of a replicated leaf one a process."""
    kind, one_each = _host_kind(_device_of(leaf)), None
    if leaf.is_fully_replicated:
        devices: list[Any] = sorted(leaf.sharding.device_set, key=lambda device: -device.id)
        first = {device.process_index: device for device in devices}  # the smallest number comes last
        mesh = Mesh(np.array([first[process] for process in sorted(first)]), ("process",))
        one_each = NamedSharding(mesh, PartitionSpec(), memory_kind=kind)  # type: ignore[no-untyped-call]
        leaf = next(shard.data for shard in leaf.addressable_shards if shard.device in one_each.device_set)
    if kind is None:
        return np.array(leaf)
    copy = jax.device_put(leaf, leaf.sharding.with_memory_kind(kind), may_alias=False)
    if one_each is None or len(one_each.device_set) == 1:
        return copy
    # One array of all processes, as checkpointers ask for.
    return jax.make_array_from_single_device_arrays(leaf.shape, one_each, [copy])


def _to_device(value: Any, leaf: Any) -> Array:
    """A snapshot's leaf where that of the parameters is."""
    leaf = jnp.asarray(leaf)  # one of NumPy's is where JAX would put it
    if not leaf.is_fully_replicated:
        there: Array = jax.device_put(value, leaf.sharding)
        return there
    mine = value.addressable_data(0) if isinstance(value, jax.Array) else value
    copies = [jax.device_put(mine, shard.data.sharding) for shard in leaf.addressable_shards]
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
