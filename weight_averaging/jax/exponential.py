"""Averages that each snapshot enters with a weight: exponential averages and other recursions."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from weight_averaging.averages import FollowsRate
from weight_averaging.averages.follows_rate import checked_rate
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

    state: ClassVar[type] = EMAState

    def empty(self, params: Tree) -> EMAState:
        copies = jax.tree.map(
            # In memory of its own: a train step may donate the leaf's.
            lambda leaf: jnp.array(leaf, average_type(leaf), copy=True) if is_averaged(leaf) else placeholder(),
            params,
        )
        return EMAState(copies, counter(), counter(), counter(), counter())

    def take(self, state: EMAState, params: Tree, step: Array, rate: Any) -> EMAState:
        weight = self.described.weight(_number(state), jnp)
        ema = self._blended(state, params, weight)
        return state._replace(ema=ema, snapshot_step=step, count=state.count + 1)

    def _blended(self, state: Any, params: Tree, weight: Any) -> Tree:
        """The average once the weights of an update have entered with this weight; the first ones begin it."""
        first = state.count == 0

        def blend(leaf: Any, held: Array) -> Array:
            if not is_averaged(leaf):
                return held
            value, own = jnp.asarray(leaf, held.dtype), jnp.asarray(weight, real_type(held.dtype))
            # The nearer of both ends is where rounding does least, and the other framework begins: torch.lerp.
            from_held = own < 0.5
            share = jnp.where(from_held, own, own - 1)
            return jnp.where(first, value, jnp.where(from_held, held, value) + share * (value - held))

        return each(blend, params, state.ema)

    def mean(self, state: EMAState) -> Tree:
        return state.ema

    def snapshot_steps(self, state: EMAState) -> list[int]:
        return [int(state.snapshot_step)] if state.count else []


class FollowsRateState(NamedTuple):
    """The average of `averages.FollowsRate`: the fields of EMAState, and one more.

    Attributes:
        rates: float[2], what its `enter` takes as `before`.
    """

    ema: Tree
    snapshot_step: Array
    step: Array
    count: Array  # type: ignore[assignment]
    refused: Array
    rates: Array


class RateAverager(RecursiveAverager):
    """An average into which snapshots enter with weights that depend on the learning rate."""

    state: ClassVar[type] = FollowsRateState
    described: FollowsRate

    def _rate(self, learning_rate: Any) -> Any:
        rate = learning_rate
        if not isinstance(rate, jax.Array):  # for one on a device nothing waits
            rate = checked_rate(rate, [self.described])
        return jnp.asarray(rate, jnp.result_type(float))

    def empty(self, params: Tree) -> Any:
        rates = jnp.asarray(self.described.begins_with, jnp.result_type(float))
        return FollowsRateState(*super().empty(params), rates)

    def take(self, state: Any, params: Tree, step: Array, rate: Any) -> Any:
        weight, rates = self.described.enter(_number(state), rate, (state.rates[0], state.rates[1]), jnp)
        ema = self._blended(state, params, weight)
        held = jnp.stack(rates).astype(state.rates.dtype)
        return state._replace(ema=ema, snapshot_step=step, count=state.count + 1, rates=held)


def _number(state: Any) -> Array:
    """Of the snapshot to come, 1, 2, ..., float[]."""
    number: Array = (state.count + 1).astype(jnp.result_type(float))
    return number
