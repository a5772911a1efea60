"""What LAWA and EMA have in common: when they take in a snapshot, and what they show."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from weight_averaging.averages import Average
from weight_averaging.averages.schedule import is_due
from weight_averaging.jax.trees import Tree, all_finite, check_alike, dtype_of, is_averaged


class Averager(NamedTuple):
    """An average of weights along training, as pure functions over any pytree.

    `params` is what is averaged: parameters, or parameters and batch statistics. Floating-point leaves are averaged in
    float32 (complex ones in complex64) whatever they are; all others are passed through. Structure, shapes and types of
    a state never change. The functions may be part of a larger `jax.jit`, which should donate the state: in donated
    memory an update with nothing due copies nothing.

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


def averager(
    average: Average,
    *,
    init: Callable[[Tree], Any],
    take: Callable[[Any, Tree, Array], Any],
    mean: Callable[[Any], Tree],
    check_finite: bool,
    axes: tuple[int, ...] = (),
) -> Averager:
    """The rules that all averages share around those of one.

    Args:
        average: what it is, with an interval.
        init: as of Averager. A state's first field is a tree like the parameters; it also has the fields `step`,
            `count` and `refused`.
        take: the state that has taken in the weights of an update.
        mean: the average, a tree like the parameters; in the place of leaves that are not averaged anything.
        check_finite: whether weights that are not finite are refused.
        axes: the leading axes of that tree's leaves.
    """
    interval, start, needed = average.interval, average.start, average.needed
    assert interval is not None

    def refuse(state: Any, params: Tree, step: Array) -> Any:
        return state._replace(refused=state.refused + 1)

    def look(state: Any, params: Tree, step: Array) -> Any:
        return lax.cond(all_finite(params), take, refuse, state, params, step)

    def skip(state: Any, params: Tree, step: Array) -> Any:
        return state

    @jax.jit
    def collect(state: Any, params: Tree, step: Array) -> Any:
        new = (step > state.step) | ((step == 0) & (state.count == 0))
        due = is_due(step, interval, start) & new  # type: ignore[arg-type]
        state = lax.cond(due, look if check_finite else take, skip, state, params, step)
        return state._replace(step=jnp.maximum(state.step, step))

    def update(state: Any, params: Tree, step: int | Array) -> Any:
        check_alike(state[0], params, axes)
        check_step(step)
        if isinstance(step, int) and not is_due(step, interval, start):
            return state._replace(step=jnp.maximum(state.step, step))  # outside jit the whole state would be copied
        return collect(state, params, jnp.asarray(step, jnp.int32))

    def ready(state: Any) -> Array:
        enough: Array = state.count >= needed
        return enough

    def averaged(state: Any, params: Tree) -> Tree:
        return jax.tree.map(
            # What both branches hand on as it is, lax.cond would not copy: a train step may donate it.
            lambda leaf, value: value.astype(dtype_of(leaf)) if is_averaged(leaf) else jnp.copy(leaf),
            params,
            mean(state),
        )

    @jax.jit
    def show(state: Any, params: Tree) -> Tree:
        return lax.cond(ready(state), averaged, lambda state, params: params, state, params)

    def average_of(state: Any, params: Tree) -> Tree:
        check_alike(state[0], params, axes)
        return show(state, params)

    return Averager(
        jax.jit(init),
        update,  # jitted, the counters are where the parameters are
        average_of,
        ready,
        settings_of(average),
    )


def settings_of(average: Average) -> tuple[tuple[str, Any], ...]:
    """Names and values of what a state depends on."""
    fields = dataclasses.fields(average)
    own = {field.name: getattr(average, field.name) for field in fields}
    return (("averager", type(average).__name__), *own.items())


def counter() -> Array:
    return jnp.zeros((), jnp.int32)


def check_step(step: int | Array) -> None:
    if isinstance(step, bool) or not jax.dtypes.issubdtype(dtype_of(step), jnp.integer) or jnp.shape(step) != ():
        raise TypeError(f"update takes the number of completed updates, a whole number, not {step!r}")
