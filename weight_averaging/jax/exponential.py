"""Averages that each snapshot enters with a weight: exponential averages and other recursions."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from weight_averaging.averages import FollowsRate
from weight_averaging.averages.checks import check_count, tell_of_dead_zone
from weight_averaging.averages.follows_rate import checked_rate, tell_of_unknown_top
from weight_averaging.jax.averager import State
from weight_averaging.jax.checks import check_state
from weight_averaging.jax.device_averager import DeviceAverager, counter
from weight_averaging.jax.trees import WIDE, Tree, average_type, dtype_of, each, is_averaged, placeholder, real_type


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


class CompensatedEMAState(NamedTuple):
    """An exponential average with what rounding it to float32 has left out.

    Attributes:
        ema: as in EMAState, the average rounded to its type.
        compensation: a tree like `ema`: the average is `ema + compensation`, to 48 bits instead of 24.
        snapshot_step, step, count, refused: as in EMAState.
    """

    ema: Tree
    compensation: Tree
    snapshot_step: Array
    step: Array
    count: Array  # type: ignore[assignment]
    refused: Array


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


class CompensatedFollowsRateState(NamedTuple):
    """The fields of CompensatedEMAState, and `rates` of FollowsRateState."""

    ema: Tree
    compensation: Tree
    snapshot_step: Array
    step: Array
    count: Array  # type: ignore[assignment]
    refused: Array
    rates: Array


class RecursiveAverager(DeviceAverager[State]):
    """An average of one tree, into which snapshots enter with the weights of `described`."""

    state: ClassVar[type] = EMAState

    def init(self, params: Tree) -> Any:
        state = super().init(params)
        narrow = any(is_averaged(leaf) and dtype_of(leaf).name not in WIDE for leaf in jax.tree.leaves(params))
        if narrow and "compensation" not in self.state._fields:  # type: ignore[attr-defined]
            tell_of_dead_zone(str(self.described), self.described.dead_zone, "one with compensated=True")
        return state

    def empty(self, params: Tree) -> Any:
        return self.state(**self._fields(params))

    def _fields(self, params: Tree) -> dict[str, Any]:
        """Of a new state, by name."""
        copies = jax.tree.map(
            # In memory of its own: a train step may donate the leaf's.
            lambda leaf: jnp.array(leaf, average_type(leaf), copy=True) if is_averaged(leaf) else placeholder(),
            params,
        )
        return {"ema": copies, **{name: counter() for name in ("snapshot_step", "step", "count", "refused")}}

    def take(self, state: Any, params: Tree, step: Array, rate: Any) -> Any:
        weight, further = self._weight(state, rate)
        blended = self._blended(state, params, weight)
        return state._replace(**blended, **further, snapshot_step=step, count=state.count + 1)

    def _weight(self, state: Any, rate: Any) -> tuple[Any, dict[str, Any]]:
        """Of the snapshot to come, and the fields of the state that this changes."""
        return self.described.weight(_number(state), jnp), {}

    def _blended(self, state: Any, params: Tree, weight: Any) -> dict[str, Tree]:
        """The average once the weights of an update have entered with this weight; the first ones begin it."""
        first = state.count == 0

        def blend(leaf: Any, held: Array) -> Array:
            if not is_averaged(leaf):
                return held
            value, from_held, share = _from_nearer_end(leaf, held, weight)
            return jnp.where(first, value, jnp.where(from_held, held, value) + share * (value - held))

        return {"ema": each(blend, params, state.ema)}

    def go_on(self, state: Any, settings: Mapping[str, Any]) -> Any:
        if "ema" not in getattr(state, "_fields", ()):
            check_state(state, self.state)
        was, count = check_count("interval in settings", settings.get("interval", 0)), int(state.count)
        if was != self.interval and count:
            count = max(1, round(count * was / self.interval))
        fields = {**self._beyond(state), **state._asdict(), "count": state.count * 0 + count}  # where the counter is
        return self.state(**{name: fields[name] for name in self.state._fields})  # type: ignore[attr-defined]

    def _beyond(self, state: Any) -> dict[str, Any]:
        """What a state that goes on from another has in the place of fields which that lacks."""
        return {}

    def mean(self, state: Any) -> Tree:
        return state.ema

    def snapshot_steps(self, state: Any) -> list[int]:
        return [int(state.snapshot_step)] if state.count else []


class CompensatedAverager(RecursiveAverager[State]):
    """`RecursiveAverager` that keeps what rounding leaves out, so that the smallest update counts.

    What is updated is the sum of both parts. It is split anew by the error-free sum of Knuth (TAOCP 2, 4.2.2, theorem
    B). So it has 48 bits, in the memory of PyTorch's averagers with `dtype=torch.float64`, and needs no x64 of JAX.
    """

    state: ClassVar[type] = CompensatedEMAState

    def _fields(self, params: Tree) -> dict[str, Any]:
        plain = super()._fields(params)
        # Made of the weights, so as to be sharded as they are; what it is does not matter before the first snapshot.
        nothing = each(lambda leaf, own: own * 0 if is_averaged(leaf) else placeholder(), params, plain["ema"])
        return {**plain, "compensation": nothing}

    def _beyond(self, state: Any) -> dict[str, Any]:
        return {**super()._beyond(state), "compensation": jax.tree.map(jnp.zeros_like, state.ema)}

    def _blended(self, state: Any, params: Tree, weight: Any) -> dict[str, Tree]:
        first = state.count == 0

        def blend(leaf: Any, held: Array, left: Array) -> tuple[Array, Array]:
            if not is_averaged(leaf):
                return held, left
            value, from_held, share = _from_nearer_end(leaf, held, weight)
            zero = jnp.zeros_like(left)
            moved = share * ((value - held) - left)
            whole, rest = _exact_sum(jnp.where(from_held, held, value), moved)
            whole, rest = _exact_sum(whole, rest + jnp.where(from_held, left, zero))
            return jnp.where(first, value, whole), jnp.where(first, zero, rest)

        leaves, structure = jax.tree.flatten(state.ema)
        triples = zip(jax.tree.leaves(params), leaves, jax.tree.leaves(state.compensation), strict=True)
        both = [blend(*triple) for triple in triples]
        average, rest = (jax.tree.unflatten(structure, [pair[part] for pair in both]) for part in (0, 1))
        return {"ema": average, "compensation": rest}


class RateAverager(RecursiveAverager[State]):
    """An average into which snapshots enter with weights that depend on the learning rate."""

    state: ClassVar[type] = FollowsRateState
    described: FollowsRate

    def _rate(self, learning_rate: Any) -> Any:
        rate = learning_rate
        if not isinstance(rate, jax.Array):  # for one on a device nothing waits
            rate = checked_rate(rate, [self.described])
        return jnp.asarray(rate, jnp.result_type(float))

    def _fields(self, params: Tree) -> dict[str, Any]:
        return {**super()._fields(params), "rates": jnp.asarray(self.described.begins_with, jnp.result_type(float))}

    def _beyond(self, state: Any) -> dict[str, Any]:
        if state.count and not hasattr(state, "rates"):
            tell_of_unknown_top(self.described)
        rates = jnp.asarray(self.described.begins_with, jnp.result_type(float))
        return {**super()._beyond(state), "rates": state.count * 0 + rates}  # where the counter is

    def _weight(self, state: Any, rate: Any) -> tuple[Any, dict[str, Any]]:
        weight, rates = self.described.enter(_number(state), rate, (state.rates[0], state.rates[1]), jnp)
        return weight, {"rates": jnp.stack(rates).astype(state.rates.dtype)}


class CompensatedRateAverager(RateAverager[CompensatedFollowsRateState], CompensatedAverager):
    """Both: an average that follows the learning rate, and keeps what rounding leaves out."""

    state = CompensatedFollowsRateState


def _number(state: Any) -> Array:
    """Of the snapshot to come, 1, 2, ..., float[]."""
    number: Array = (state.count + 1).astype(jnp.result_type(float))
    return number


def _from_nearer_end(leaf: Any, held: Array, weight: Any) -> tuple[Array, Array, Array]:
    """A snapshot, whether the average is the nearer end, and the share of their distance to be added to that end.

    From there rounding does least, and the other framework begins there: torch.lerp.
    """
    value, own = jnp.asarray(leaf, held.dtype), jnp.asarray(weight, real_type(held.dtype))
    from_held = own < 0.5
    return value, from_held, jnp.where(from_held, own, own - 1)


def _exact_sum(one: Array, other: Array) -> tuple[Array, Array]:
    """The rounded sum, and what rounding has left out of it."""
    total = one + other
    of_other = total - one
    return total, (one - (total - of_other)) + (other - of_other)
