"""Pytrees of parameters: which leaves are averaged, in which type, and whether two trees are alike."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

Tree = Any


def dtype_of(leaf: Any) -> Any:
    """The type of an array, a shape (`jax.ShapeDtypeStruct`) or a Python number."""
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def is_averaged(leaf: Any) -> bool:
    """Whether a leaf is floating-point or complex; all others (integers, flags, random keys) are passed through."""
    return jax.dtypes.issubdtype(dtype_of(leaf), jnp.inexact)


def single(leaf: Any) -> Array:
    """A leaf in the type that averages have: float32, or complex64."""
    return jnp.asarray(leaf, single_type(leaf))


def single_copy(leaf: Any) -> Array:
    """As `single`, in memory of its own: a train step may donate the leaf's."""
    return jnp.array(leaf, single_type(leaf), copy=True)


def single_type(leaf: Any) -> Any:
    return jnp.complex64 if jax.dtypes.issubdtype(dtype_of(leaf), jnp.complexfloating) else jnp.float32


def placeholder() -> Array:
    """What a state has in the place of a leaf that is not averaged, so that its structure is that of the parameters."""
    return jnp.zeros((), jnp.float32)


def all_finite(params: Tree) -> Array:
    """Whether no averaged leaf has a NaN or, in float32, an infinity: bool[].

    Told by the sums, which on a CPU take a third of the time of `isfinite` of each element. Finite weights whose sum
    overflows, beyond 1e30, count as infinite too.
    """
    sums = [jnp.isfinite(jnp.sum(single(leaf))) for leaf in jax.tree.leaves(params) if is_averaged(leaf)]
    return jnp.stack(sums).all()


def check_averaged(params: Tree) -> None:
    """A ValueError if nothing of a tree can be averaged."""
    if not any(is_averaged(leaf) for leaf in jax.tree.leaves(params)):
        raise ValueError("there is nothing to average: the tree has no floating-point leaf")


def check_alike(held: Tree, params: Tree, axes: tuple[int, ...] = ()) -> None:
    """A ValueError, in one line, where parameters are not like those that a state was made for.

    Args:
        held: the state's tree, whose leaves have these axes before those of the parameters.
    """
    structure: Any = jax.tree.structure(held)
    if structure != jax.tree.structure(params):
        mine, given = ({jax.tree_util.keystr(path) for path, _ in leaves_of(tree)} for tree in (held, params))
        differing = sorted(mine ^ given) or ["its type of container"]
        there, not_there = "averaging state", "parameters"
        if differing[0] in given:
            there, not_there = not_there, there
        raise ValueError(f"{differing[0] or 'a leaf'} is in the {there} and not in the {not_there}: {_AGAIN}")
    for (path, leaf), own in zip(leaves_of(params), jax.tree.leaves(held), strict=True):
        expected = (*axes, *jnp.shape(leaf))
        if is_averaged(leaf) and jnp.shape(own) != expected:
            name = jax.tree_util.keystr(path) or "the leaf"
            raise ValueError(f"{name} is {jnp.shape(own)} in the averaging state and not {expected}: {_AGAIN}")


leaves_of = jax.tree_util.tree_leaves_with_path
_AGAIN = "make a new state by init(params), or load one of this model"
