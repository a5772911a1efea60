"""What is refused before anything is computed: states, trees and steps that do not belong together, each in a line."""

import logging
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from weight_averaging.errors import UsageError
from weight_averaging.jax.trees import Tree, dtype_of, is_averaged, structure_with_axis
from weight_averaging.words import inline

logger = logging.getLogger("weight_averaging")

LAST_STEP = 2**31 - 1  # of int32, the integers that JAX has everywhere
_AGAIN = "make a new state by init(params), or load one of this model"


def check_averaged(params: Tree) -> None:
    """An error if nothing of a tree can be averaged, or if a leaf is no array."""
    for path, leaf in leaves_of(params):
        if not (hasattr(leaf, "dtype") or isinstance(leaf, int | float | complex)):
            raise TypeError(
                f"{_name(path)} is no array but {type(leaf).__name__}: average the arrays alone, in Equinox "
                "eqx.filter(model, eqx.is_inexact_array)"
            )
        check_on_device(_name(path), leaf)
    if not any(is_averaged(leaf) for leaf in jax.tree.leaves(params)):
        raise ValueError("there is nothing to average: the tree has no floating-point leaf")


def check_state(state: Any, kind: type) -> None:
    """An error where the first argument is no state of this kind of averager."""
    if isinstance(state, kind):
        return
    name = kind.__name__
    if isinstance(state, tuple) and "refused" in getattr(state, "_fields", ()):
        why = "the state of another averager: begin with a new one by init(params), or take the averager that it is of"
        if {"ema"} <= set(kind._fields) & set(state._fields):  # type: ignore[attr-defined]
            why += ", or on purpose go_on(state, settings)"
    elif isinstance(state, dict) and set(state) == set(kind._fields):  # type: ignore[attr-defined]
        why = "one that was restored without its types: give init(params) as the target of the restore"
    else:
        why = "not one: the state comes first, update(state, params, step) and average(state, params)"
    raise UsageError(f"the state is to be a {name}, and the {type(state).__name__} given is {why}")


def check_alike(held: Tree, params: Tree, axes: tuple[int, ...] = (), in_host: bool = False) -> None:
    """A ValueError, in one line, where parameters are not like those that a state was made for.

    Args:
        held: the state's tree, whose leaves have these axes before those of the parameters.
        in_host: whether it belongs into host memory.
    """
    structure: Any = jax.tree.structure(held)
    given: Any = jax.tree.structure(params)
    if structure != given and not (axes and structure == structure_with_axis(params)):
        mine, theirs = ({jax.tree_util.keystr(path) for path, _ in leaves_of(tree)} for tree in (held, params))
        if not (differing := sorted(mine ^ theirs)):
            raise ValueError(f"{_differing(structure, given)}: {_AGAIN}")
        there, not_there = "averaging state", "parameters"
        if differing[0] in theirs:
            there, not_there = not_there, there
        raise ValueError(f"{differing[0] or 'a leaf'} is in the {there} and not in the {not_there}: {_AGAIN}")
    for (path, leaf), own in zip(leaves_of(params), jax.tree.leaves(held), strict=True):
        expected = (*axes, *jnp.shape(leaf))
        if not is_averaged(leaf):
            if jnp.shape(own) != ():
                kinds = f"{jnp.dtype(dtype_of(own)).name} in the averaging state and {dtype_of(leaf)} now"
                raise ValueError(f"{_name(path)} is {kinds}: {_AGAIN}")
            continue
        if own.dtype == jnp.bool_:
            raise ValueError(f"{_name(path)} was not floating-point when the averaging state was made: {_AGAIN}")
        if jnp.shape(own) != expected:
            raise ValueError(f"{_name(path)} is {jnp.shape(own)} in the averaging state and not {expected}: {_AGAIN}")
        check_on_device(_name(path), leaf)
        if not in_host:
            check_on_device(f"{_name(path)} of the averaging state", own)


def check_on_device(name: str, leaf: Any) -> None:
    """An error if an array is in memory that its device does not compute in."""
    if (kind := _elsewhere(leaf)) is not None:
        raise UsageError(f"{name} is in {kind} memory: jax.device_put it onto the device before")


def _elsewhere(leaf: Any) -> str | None:
    """The kind of memory that an array is in, if it is not the one that its device computes in."""
    if isinstance(leaf, jax.core.Tracer):
        space = getattr(jax.typeof(leaf), "memory_space", None)
        return "host" if str(space).rpartition(".")[2].lower() == "host" else None
    kind = getattr(getattr(leaf, "sharding", None), "memory_kind", None)
    if kind in (None, "device") or kind == next(iter(leaf.sharding.device_set)).default_memory().kind:
        return None
    return str(kind)


def known(step: int | Array) -> int | Array:
    """The number of completed updates, checked: as an int where that is known without waiting for the device.

    Of several processes, which all have to start the same computations, arrays of JAX stay arrays.

    Raises:
        TypeError: it is no whole number.
        UsageError: it is beyond int32.
    """
    if isinstance(step, bool) or not jax.dtypes.issubdtype(dtype_of(step), jnp.integer) or jnp.shape(step) != ():
        raise TypeError(f"update takes the number of completed updates, a whole number, not {inline(step)}")
    if isinstance(step, jax.Array) and (jax.process_count() > 1 or not at_hand(step)):
        return step
    return checked(int(step))


def at_hand(value: Any) -> bool:
    """Whether reading it waits for no device."""
    return not isinstance(value, jax.core.Tracer) and (not hasattr(value, "is_ready") or bool(value.is_ready()))


def checked(step: int) -> int:
    if step > LAST_STEP:
        raise UsageError(f"step {step} is beyond 2^31 - 1: count optimizer updates, not examples or tokens")
    return step


@lru_cache  # once for each count that was reached
def tell_of_restart(last: int) -> None:
    logger.warning(
        "an update is due that comes before update %d, the last one seen: all are passed over until then. If the "
        "count has begun anew, begin with a new state by init(params)",
        last,
    )


def narrowed(step: int | Array, beyond: int) -> Array:
    """int32[]; `beyond` in the place of what int32 cannot hold."""
    if isinstance(step, int) or step.dtype.name not in ("uint32", "int64", "uint64"):
        return jnp.asarray(step, jnp.int32)
    last = jnp.asarray(LAST_STEP, step.dtype)
    return jnp.where(step > last, jnp.int32(beyond), jnp.minimum(step, last).astype(jnp.int32))


def _differing(held: Any, given: Any) -> str:
    """What two structures with the same paths differ in."""
    mine, theirs = held.node_data(), given.node_data()
    if mine == theirs:
        pairs = zip(held.children(), given.children(), strict=True)
        return next(_differing(own, other) for own, other in pairs if own != other)
    if mine is None or theirs is None or mine[0] is not theirs[0]:
        names = ["a leaf" if node is None else node[0].__name__ for node in (mine, theirs)]
        return f"a container is {names[0]} in the averaging state and {names[1]} in the parameters"
    return f"what {mine[0].__name__} holds beside arrays is {mine[1]} in the averaging state and now {theirs[1]}"


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path) or "the leaf"


leaves_of = jax.tree_util.tree_leaves_with_path
