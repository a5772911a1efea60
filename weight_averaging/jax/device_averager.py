"""Averagers whose states are on the device: when they take in a snapshot, and what they show, as jitted functions."""

from abc import abstractmethod
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from weight_averaging.averages.schedule import is_due
from weight_averaging.jax.agreement import everywhere
from weight_averaging.jax.averager import Averager, State
from weight_averaging.jax.checks import (
    at_hand,
    check_alike,
    check_averaged,
    check_state,
    known,
    narrowed,
    tell_of_restart,
)
from weight_averaging.jax.trees import Tree, all_finite, dtype_of, is_averaged


class DeviceAverager(Averager[State]):
    """The rules that all averages on the device share around those of one."""

    def init(self, params: Tree) -> State:
        check_averaged(params)
        state: State = _init(self, params)  # jitted, the counters are where the parameters are
        return state

    def update(
        self, state: State, params: Tree, step: int | Array, *, learning_rate: Any = None, donate: bool = False
    ) -> State:
        self._check_like(state, params)
        rate = self._rate(learning_rate)
        step = known(step)
        if isinstance(step, int) and not is_due(step, self.interval, self.described.start):
            return state._replace(step=jnp.maximum(state.step, step))  # type: ignore[no-any-return]
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((state, params, rate)))
        if isinstance(step, int) and at_hand(state.step) and step < (last := int(state.step)):
            tell_of_restart(last)
        collect = _collect_in_place if donate and not traced else _collect
        updated: State = collect(self, state, params, narrowed(step, beyond=-self.interval), rate)
        return updated

    def _rate(self, learning_rate: Any) -> Any:
        """What `take` is given of it; None for an average that does not follow it."""
        return None

    def average(self, state: State, params: Tree) -> Tree:
        self._check_like(state, params)
        return show(self, state, params)

    def _check_like(self, state: State, params: Tree) -> None:
        check_state(state, self.state)
        check_alike(state[0], params, self.axes)

    @property
    def axes(self) -> tuple[int, ...]:
        """The leading axes of the leaves of a state's tree."""
        return ()

    @abstractmethod
    def empty(self, params: Tree) -> State:
        """A new state. Its first field is a tree like the parameters; `step`, `count` and `refused` are others."""

    @abstractmethod
    def take(self, state: State, params: Tree, step: Array, rate: Any) -> State:
        """The state that has taken in the weights of an update, whose learning rate is `rate` where it is followed."""

    @abstractmethod
    def mean(self, state: State) -> Tree:
        """The average, a tree like the state's; in the place of leaves that are not averaged anything."""


@partial(jax.jit, static_argnums=0)
def _init(averager: DeviceAverager[Any], params: Tree) -> Any:
    return averager.empty(params)


def _collected(averager: DeviceAverager[Any], state: Any, params: Tree, step: Array, rate: Any = None) -> Any:
    """The state after update `step`, int32[], with this learning rate, where it is followed."""

    def take(state: Any, params: Tree) -> Any:
        # Where runs of their own are on the devices of a shard_map, all of a state varies among them.
        return averager.take(state, params, state.step * 0 + step, rate)

    def refuse(state: Any, params: Tree) -> Any:
        return state._replace(refused=state.refused + 1)

    def look(state: Any, params: Tree) -> Any:
        finite = all_finite(params, state[0])
        if rate is not None:
            finite &= (rate >= 0) & (rate < jnp.inf)
        finite = everywhere(finite, state.count)
        return lax.cond(finite, take, refuse, state, params)

    def skip(state: Any, params: Tree) -> Any:
        return state

    def multiple(state: Any, params: Tree) -> Any:
        # A step < 0 is one that int32 cannot hold.
        went_back = (step < state.step) & (step != 0) & ((step >= averager.described.start) | (step < 0))
        state = state._replace(refused=state.refused + went_back.astype(jnp.int32))
        is_first = (step == 0) & (state.step == 0) & (state.count == 0)  # start=0: before training
        is_new = ((step > state.step) | is_first) & (step >= averager.described.start)
        return lax.cond(is_new, look if averager.check_finite else take, skip, state, params)

    # By the step alone: under vmap, where all runs have one, this stays a branch, and the inner ones are selections.
    state = lax.cond(step % averager.interval == 0, multiple, skip, state, params)
    return state._replace(step=jnp.maximum(state.step, step))


_collect = jax.jit(_collected, static_argnums=0)
_collect_in_place = jax.jit(_collected, static_argnums=0, donate_argnums=1)


@partial(jax.jit, static_argnums=0)
def show(averager: DeviceAverager[Any], state: Any, params: Tree) -> Tree:
    """The average in the types of `params`, or these while it is not ready."""
    params = lax.stop_gradient(params)  # as what is shown, when it is ready, has none

    def averaged(state: Any, params: Tree) -> Tree:
        leaves, structure = jax.tree.flatten(params)
        values = jax.tree.leaves(averager.mean(state))
        # What both branches hand on as it is, lax.cond would not copy: a train step may donate it.
        shown = [
            value.astype(dtype_of(leaf)) if is_averaged(leaf) else jnp.copy(leaf)
            for leaf, value in zip(leaves, values, strict=True)
        ]
        return jax.tree.unflatten(structure, shown)

    return lax.cond(averager.ready(state), averaged, lambda state, params: params, state, params)


def counter() -> Array:
    """Of nothing yet, int32[]."""
    return jnp.zeros((), jnp.int32)
