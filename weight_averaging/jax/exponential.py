"""Averages that each snapshot enters with a weight: exponential averages and other recursions."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from weight_averaging.jax.device_averager import DeviceAverager, counter
from weight_averaging.jax.trees import Tree, average_type, each, is_averaged, placeholder, real_type


class EMAState(NamedTuple):
    """An exponential average.

    Attributes:
        ema: a tree like the parameters, float32 (float64 of such leaves); a leaf that is not averaged is bool[].
        snapshot_step: int32[], the update of the last snapshot taken in; 0 before the first.
        step: int32[], the last update seen.
        count: int32[], snapshots taken in so far.
        refused: int32[], snapshots that were due and not finite, or of an update before the last one seen.
    """

    ema: Tree
    snapshot_step: Array
    step: Array
    count: Array  # type: ignore[assignment]  # the name that such counters have in optax
    refused: Array


class RecursiveAverager(DeviceAverager[EMAState]):
    """An average of one tree, into which snapshots enter with the weights of `described`."""

    state = EMAState

    def empty(self, params: Tree) -> EMAState:
        copies = jax.tree.map(
            # In memory of its own: a train step may donate the leaf's.
            lambda leaf: jnp.array(leaf, average_type(leaf), copy=True) if is_averaged(leaf) else placeholder(),
            params,
        )
        return EMAState(copies, counter(), counter(), counter(), counter())

    def take(self, state: EMAState, params: Tree, step: Array) -> EMAState:
        number = (state.count + 1).astype(jnp.result_type(float))
        weight = self.described.weight(number, jnp)
        first = state.count == 0

        def blend(leaf: Any, held: Array) -> Array:
            if not is_averaged(leaf):
                return held
            value, own = jnp.asarray(leaf, held.dtype), jnp.asarray(weight, real_type(held.dtype))
            # The nearer of both ends is where rounding does least, and the other framework begins: torch.lerp.
            from_held = own < 0.5
            share = jnp.where(from_held, own, own - 1)
            return jnp.where(first, value, jnp.where(from_held, held, value) + share * (value - held))

        return state._replace(ema=each(blend, params, state.ema), snapshot_step=step, count=state.count + 1)

    def mean(self, state: EMAState) -> Tree:
        return state.ema

    def snapshot_steps(self, state: EMAState) -> list[int]:
        return [int(state.snapshot_step)] if state.count else []
