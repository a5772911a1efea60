"""Swapping for loops in which what is evaluated is what is trained on next, as under AlgoPerf's JAX harness."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from weight_averaging.jax.averager import Averager
from weight_averaging.jax.trees import Tree


class Held(NamedTuple):
    """The raw weights while the average is in their place. Structure, shapes and types never change.

    Attributes:
        raw: a tree like the parameters and of their types; of no meaning while `swapped` is false.
        swapped: bool[], whether the parameters are the average now.
    """

    raw: Tree
    swapped: Array


def hold(params: Tree) -> Held:
    """Nothing swapped yet; memory of its own for a copy of the parameters."""
    return Held(jax.tree.map(jnp.copy, params), jnp.zeros((), bool))


@partial(jax.jit, static_argnums=0)
def swap_in(averager: Averager, held: Held, state: Any, params: Tree) -> tuple[Held, Tree]:
    """The average in the place of the parameters, which are kept aside. Nothing if it is there, or none is ready.

    Returns:
        The new `held`, and the parameters to evaluate, in new memory.
    """

    def put(held: Held, state: Any, params: Tree) -> tuple[Held, Tree]:
        average = averager.average(state, params)
        return Held(params, jnp.ones((), bool)), average

    def leave(held: Held, state: Any, params: Tree) -> tuple[Held, Tree]:
        return held, params

    return lax.cond(~held.swapped & averager.ready(state), put, leave, held, state, params)


@jax.jit
def swap_out(held: Held, params: Tree) -> tuple[Held, Tree]:
    """The raw weights, bit for bit, to train on; the parameters as they are if those are the raw ones already."""

    def put_back(held: Held, params: Tree) -> tuple[Held, Tree]:
        return held._replace(swapped=jnp.zeros((), bool)), held.raw

    return lax.cond(held.swapped, put_back, lambda held, params: (held, params), held, params)
