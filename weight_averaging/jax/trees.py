"""Pytrees of parameters: which leaves are averaged, in which type, and what a window's axis does to their names."""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

Tree = Any

WIDE = ("float64", "complex128")  # averaged in their own type


def dtype_of(leaf: Any) -> Any:
    """The type of an array, a shape (`jax.ShapeDtypeStruct`) or a Python number."""
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def is_averaged(leaf: Any) -> bool:
    """Whether a leaf is floating-point or complex; all others (integers, flags, random keys) are passed through."""
    return jax.dtypes.issubdtype(dtype_of(leaf), jnp.inexact)


def average_type(leaf: Any) -> Any:
    """The type of a leaf's average: float32 or complex64; float64 or complex128 of such a leaf."""
    dtype = jnp.dtype(dtype_of(leaf))
    if dtype.name in WIDE:
        return dtype
    return jnp.complex64 if jax.dtypes.issubdtype(dtype, jnp.complexfloating) else jnp.float32


def real_type(dtype: Any) -> Any:
    """float64 for numbers of twice 64 bits or of 64, float32 for all others."""
    return jnp.float64 if jnp.dtype(dtype).name in WIDE else jnp.float32


def placeholder() -> Array:
    """What a state has in the place of a leaf that is not averaged, so that its structure is that of the parameters.

    No average is a flag: a leaf that becomes one of numbers later is told from one of numbers that was there.
    """
    return jnp.zeros((), jnp.bool_)


def each(function: Callable[..., Any], params: Tree, held: Tree) -> Tree:
    """`function(leaf, own)` of all leaves, as a tree like a state's, whose containers may name one axis more."""
    owns, structure = jax.tree.flatten(held)
    pairs = zip(jax.tree.leaves(params), owns, strict=True)
    return jax.tree.unflatten(structure, [function(leaf, own) for leaf, own in pairs])


def with_axis(tree: Tree) -> Tree:
    """A tree whose leaves have one more leading axis, with the names that flax gives their axes moved along.

    flax keeps these beside the arrays, as metadata of `nn.Partitioned` and its kind and of `nnx.Variable`.
    """
    if "flax.core.meta" in sys.modules:
        from flax.core import meta

        tree = meta.add_axis(tree, 0, {meta.PARTITION_NAME: None})
    if "flax.nnx" in sys.modules:
        from flax import nnx

        tree = nnx.spmd.add_axis(tree, 0, {nnx.PARTITION_NAME: None})
    return tree


def structure_with_axis(params: Tree) -> Any:
    """Of `with_axis(params)`."""
    leaves, structure = jax.tree.flatten(params)
    return jax.tree.structure(with_axis(jax.tree.unflatten(structure, range(len(leaves)))))


def all_finite(params: Tree, held: Tree) -> Array:
    """Whether no averaged leaf has a NaN or, in the type of its average, an infinity: bool[].

    Told by the sums, which on a CPU take a third of the time of `isfinite` of each element. Finite weights whose sum
    overflows, in float32 beyond 1e30, count as infinite too.
    """
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(held), strict=True)
    sums = [jnp.isfinite(jnp.sum(jnp.asarray(leaf, own.dtype))) for leaf, own in pairs if is_averaged(leaf)]
    return jnp.stack(sums).all()
