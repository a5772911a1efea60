"""Averages of the latest snapshots, in a window on the device."""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from weight_averaging.averages import Average
from weight_averaging.averages.summation import pairwise_sum
from weight_averaging.jax.device_averager import DeviceAverager, counter, show
from weight_averaging.jax.trees import (
    Tree,
    average_type,
    dtype_of,
    each,
    is_averaged,
    placeholder,
    real_type,
    with_axis,
)

_MANY = 64  # leaves from which on alike ones are compiled once


class LAWAState(NamedTuple):
    """A window of snapshots.

    Attributes:
        snapshots: a tree like the parameters, with leaves float32[L, ...] (float64 of such leaves): snapshot number n
            (0, 1, ...) is at n mod L. A leaf that is not averaged is bool[].
        steps: int32[L], the updates of those snapshots; 0 where there is none yet, which `count` tells.
        step: int32[], the last update seen.
        count: int32[], snapshots taken in so far.
        refused: int32[], snapshots that were due and not finite, or of an update before the last one seen.
    """

    snapshots: Tree
    steps: Array
    step: Array
    count: Array  # type: ignore[assignment]  # the name that such counters have in optax
    refused: Array


class WindowAverager(DeviceAverager[LAWAState]):
    """An average that is made of the latest snapshots, `described.held` of them."""

    state = LAWAState

    @property
    def window(self) -> int:
        assert self.described.held is not None
        return self.described.held

    @property
    def axes(self) -> tuple[int, ...]:
        return (self.window,)

    def empty(self, params: Tree) -> LAWAState:
        def repeated(leaf: Any) -> Array:
            # Copies of the weights rather than zeros: so the window is sharded as they are, also under jit.
            return jnp.repeat(jnp.asarray(leaf, average_type(leaf))[None], self.window, 0)

        snapshots = jax.tree.map(lambda leaf: repeated(leaf) if is_averaged(leaf) else placeholder(), params)
        steps = jnp.zeros(self.window, jnp.int32)
        return LAWAState(with_axis(snapshots), steps, counter(), counter(), counter())

    def take(self, state: LAWAState, params: Tree, step: Array, rate: Any) -> LAWAState:
        steps = marked(state.steps, state.count, jnp)
        anew = of_other_settings(steps, step, self.interval, self.described.start, state.refused, jnp)
        count = jnp.where(anew, 0, state.count)
        steps = jnp.where(anew, 0, state.steps)
        slot = count % self.window

        def put(leaf: Any, held: Array) -> Any:
            if not is_averaged(leaf):
                return held
            return lax.dynamic_update_index_in_dim(held, jnp.asarray(leaf, held.dtype), slot, 0)

        steps = jnp.where(jnp.arange(self.window) == slot, step, steps)
        return state._replace(snapshots=each(put, params, state.snapshots), steps=steps, count=count + 1)

    def average(self, state: LAWAState, params: Tree) -> Tree:
        leaves, structure = jax.tree.flatten(params)
        if len(leaves) < _MANY or any(isinstance(one, jax.core.Tracer) for one in jax.tree.leaves((state, params))):
            return super().average(state, params)
        self._check_like(state, params)
        held, shown = jax.tree.leaves(state.snapshots), list(leaves)
        for some in rounds([_kind(*pair) for pair in zip(leaves, held, strict=True)]):
            part = state._replace(snapshots=[held[place] for place in some])
            for place, value in zip(some, show(self, part, [leaves[place] for place in some]), strict=True):
                shown[place] = value
        return jax.tree.unflatten(structure, shown)

    def mean(self, state: LAWAState) -> Tree:
        window, average = self.window, self.described
        held = jnp.minimum(state.count, window)
        oldest = jnp.where(state.count < window, 0, state.count % window)
        partial = average.needed < window
        # All that is the same for each leaf is computed once, without signs: or compiling takes four times as long.
        slots = [((oldest + number) % window).astype(jnp.uint32) for number in range(window)]
        present = [number < held for number in range(window)]
        shares = coefficients(average, window)

        def of(leaf: Array) -> Array:
            if leaf.ndim == 0:
                return leaf
            share = None if average.is_mean else shares[held].astype(real_type(leaf.dtype))
            rest = (jnp.uint32(0),) * (leaf.ndim - 1)

            def snapshot(number: int) -> Array:
                value = lax.dynamic_slice(leaf, (slots[number], *rest), (1, *leaf.shape[1:]))
                if share is not None:
                    value = value * share[number]
                # What is neutral in a sum, for a snapshot that is not there yet.
                return jnp.where(present[number], value, -0.0) if partial and number else value

            total = pairwise_sum(map(snapshot, range(window)))
            whole: Array = (divided(total, held) if average.is_mean else total)[0]
            return whole

        return jax.tree.map(of, state.snapshots)

    def snapshot_steps(self, state: LAWAState) -> list[int]:
        return held_steps(state.steps, state.count)


def rounds(kinds: Sequence[Hashable]) -> list[list[int]]:
    """Places in turns that have as many of each kind, and the rest: what is compiled for a turn serves all of them.

    A Transformer of 24 layers has 24 turns. A call costs as much as what it saves by one leaf that is not compiled.
    """
    places: dict[Hashable, list[int]] = {}
    for place, kind in enumerate(kinds):
        places.setdefault(kind, []).append(place)
    alike = list(places.values())
    number = min(range(1, _MANY + 1), key=lambda n: n + sum(len(one) // n + len(one) % n for one in alike))
    turns: list[list[int]] = [[] for _ in range(number + 1)]
    for one in alike:
        many = len(one) // number
        for turn in range(number):
            turns[turn] += one[turn * many : (turn + 1) * many]
        turns[-1] += one[number * many :]
    return [turn for turn in turns if turn]


def _kind(leaf: Any, held: Array) -> Hashable:
    """What of a leaf a compiled function is for."""
    own, other = (getattr(one, "sharding", None) for one in (leaf, held))  # none of NumPy's arrays
    return jnp.shape(leaf), str(dtype_of(leaf)), str(held.dtype), own, other


def marked(steps: Any, count: Any, functions: Any) -> Any:
    """int32[L], a window's `steps` with -1 where there is no snapshot yet: 0 is that of the initial weights."""
    return functions.where(functions.arange(len(steps)) < count, steps, -1)


def of_other_settings(steps: Any, step: Any, interval: int, start: int, refused: Any, functions: Any) -> Any:
    """Whether a window was filled under another interval or start than it goes on with at `step`: it begins anew then.

    Its snapshots tell. One was not due under these. Or three and more are all as far apart, farther than the interval
    at which the next one comes. Then more must be lacking between them than snapshots were refused.

    Args:
        steps: int32[L], of the snapshots, in any order; -1 for none.
        functions: numpy, or jax.numpy.
    """
    ascending = functions.sort(steps)
    other = functions.any((ascending >= 0) & ((ascending % interval != 0) | (ascending < start)))
    if len(steps) < 3:  # too few to tell, and out after one update more
        return other
    gaps, between = functions.diff(ascending), ascending[:-1] >= 0
    alike = functions.all((gaps == gaps[-1]) | ~between) & (functions.sum(between) >= 2)
    lacking = functions.sum(functions.where(between, gaps // interval - 1, 0))
    return other | (alike & (gaps[-1] > interval) & (step - ascending[-1] == interval) & (lacking > refused))


def held_steps(steps: Any, count: Any) -> list[int]:
    """The updates in a window's `steps` of which there are snapshots, ascending."""
    return sorted(int(step) for step in marked(np.asarray(steps), int(count), np) if step >= 0)


def coefficients(average: Average, window: int) -> Array:
    """float[L + 1, L]: the weight of each snapshot, oldest first, where so many are held; 0 for others."""
    table = np.zeros((window + 1, window))
    for count in range(average.needed, window + 1):
        table[count, :count] = average.coefficients(count)
    return jnp.asarray(table)


def divided(total: Array, count: Array) -> Array:
    """The quotient to the last bit.

    By one number for all elements XLA would multiply with its reciprocal; a divisor of each element it cannot turn.
    """
    real = real_type(total.dtype)
    return total / jnp.where(total == total, jnp.asarray(count, real), jnp.ones((), real))
