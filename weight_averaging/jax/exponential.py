"""Averages that each snapshot enters with a weight: exponential averages and other recursions."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from weight_averaging.averages import Average
from weight_averaging.jax.averager import Averager, averager, counter
from weight_averaging.jax.trees import Tree, check_averaged, is_averaged, placeholder, single, single_copy


class EMAState(NamedTuple):
    """An exponential average.

    Attributes:
        ema: a tree like the parameters, float32; a leaf that is not averaged is float32[].
        snapshot_step: int32[], the update of the last snapshot taken in; 0 before the first.
        step: int32[], the last update seen.
        count: int32[], snapshots taken in so far.
        refused: int32[], snapshots that were due and not finite.
    """

    ema: Tree
    snapshot_step: Array
    step: Array
    count: Array  # type: ignore[assignment]  # the name that such counters have in optax
    refused: Array


def recursive_averager(average: Average, check_finite: bool) -> Averager:
    """An average of one tree, into which snapshots enter with the weights of `average`."""

    def init(params: Tree) -> EMAState:
        check_averaged(params)
        copies = jax.tree.map(lambda leaf: single_copy(leaf) if is_averaged(leaf) else placeholder(), params)
        return EMAState(copies, counter(), counter(), counter(), counter())

    def take(state: EMAState, params: Tree, step: Array) -> EMAState:
        weight = jnp.asarray(average.weight(state.count + 1, jnp), jnp.float32)
        # The nearer of both ends is where rounding does least, and the other framework begins: torch.lerp.
        from_held = weight < 0.5
        share = jnp.where(from_held, weight, weight - 1)
        first = state.count == 0

        def blend(leaf: Any, held: Array) -> Array:
            if not is_averaged(leaf):
                return held
            value = single(leaf)
            return jnp.where(first, value, jnp.where(from_held, held, value) + share * (value - held))

        blended = jax.tree.map(blend, params, state.ema)
        return state._replace(ema=blended, snapshot_step=step, count=state.count + 1)

    return averager(average, init=init, take=take, mean=lambda state: state.ema, check_finite=check_finite)
