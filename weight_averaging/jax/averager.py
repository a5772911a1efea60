"""What LAWA and EMA have in common: when they take in a snapshot, and what they show."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from weight_averaging.collection import check_count, is_due
from weight_averaging.jax.trees import Tree, all_finite, dtype_of, is_averaged


class Averager(NamedTuple):
    """An average of weights along training, as pure functions over any pytree.

    `params` is what is averaged: parameters, or parameters and batch statistics. Floating-point leaves are averaged in
    float32 (complex ones in complex64) whatever they are; all others are passed through. Structure, shapes and types of
    a state never change.

    Attributes:
        init: `init(params) -> state`; holds no snapshot yet. Its memory is its own, sharded as the parameters are.
        update: `update(state, params, step) -> state`, after every optimizer update; `step` (int or int32[]) is the
            number of completed ones, 1, 2, ...; a step that is not larger than the last one is passed over.
        average: `average(state, params) -> params`: the average in the types of `params`, with what is not averaged as
            it is there. `params` themselves while the average is not ready. New memory throughout.
        ready: `ready(state) -> bool[]`, whether there is an average.
        settings: names and values of the hyperparameters.
    """

    init: Callable[[Tree], Any]
    update: Callable[[Any, Tree, int | Array], Any]
    average: Callable[[Any, Tree], Tree]
    ready: Callable[[Any], Array]
    settings: tuple[tuple[str, Any], ...]


def collect(
    state: Any, params: Tree, step: int | Array, interval: int, start: int, check_finite: bool, take: Callable
) -> Any:
    """The state after update `step`: as `take(state, params, step)` makes it where a snapshot is due and finite.

    What is not due is not computed (`lax.cond`), and in donated memory nothing is copied.
    """
    step = _checked(step)
    due = is_due(step, interval, start) & (step > state.step)

    def refuse(state: Any, params: Tree, step: Array) -> Any:
        return state._replace(refused=state.refused + 1)

    def look(state: Any, params: Tree, step: Array) -> Any:
        if not check_finite:
            return take(state, params, step)
        return lax.cond(all_finite(params), take, refuse, state, params, step)

    state = lax.cond(due, look, lambda state, params, step: state, state, params, step)
    return state._replace(step=jnp.maximum(state.step, step))


def show(ready: Array, average: Callable[[Any], Tree], state: Any, params: Tree) -> Tree:
    """`average(state)` in the types of `params`, or `params` if it is not ready; all in new memory.

    Args:
        average: gives a tree like `params`; of leaves that are not averaged anything.
    """

    def averaged(state: Any, params: Tree) -> Tree:
        return jax.tree.map(
            lambda leaf, value: value.astype(dtype_of(leaf)) if is_averaged(leaf) else jnp.copy(leaf),
            params,
            average(state),
        )

    return lax.cond(ready, averaged, lambda state, params: jax.tree.map(jnp.copy, params), state, params)


def check_settings(interval: int, start: int) -> tuple[int, int]:
    return check_count("interval", interval), check_count("start", start)


def counter() -> Array:
    return jnp.zeros((), jnp.int32)


def _checked(step: int | Array) -> Array:
    if isinstance(step, bool) or not jax.dtypes.issubdtype(dtype_of(step), jnp.integer) or jnp.shape(step) != ():
        raise TypeError(f"update takes the number of completed updates, a whole number, not {step!r}")
    return jnp.asarray(step, jnp.int32)
