"""Averages of the latest snapshots, in a window on the device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from weight_averaging.averages import Average
from weight_averaging.averages.summation import pairwise_sum
from weight_averaging.jax.averager import Averager, averager, counter
from weight_averaging.jax.trees import Tree, check_averaged, is_averaged, placeholder, single


class LAWAState(NamedTuple):
    """A window of snapshots.

    Attributes:
        snapshots: a tree like the parameters, with leaves float32[L, ...]: snapshot number n (0, 1, ...) is at n mod L.
            A leaf that is not averaged is float32[].
        steps: int32[L], the updates of those snapshots; 0 where there is none yet.
        step: int32[], the last update seen.
        count: int32[], snapshots taken in so far.
        refused: int32[], snapshots that were due and not finite.
    """

    snapshots: Tree
    steps: Array
    step: Array
    count: Array  # type: ignore[assignment]  # the name that such counters have in optax
    refused: Array


def window_averager(average: Average, check_finite: bool) -> Averager:
    """An average that is made of the latest snapshots, `average.held` of them."""
    window = average.held
    assert window is not None

    def init(params: Tree) -> LAWAState:
        check_averaged(params)
        return LAWAState(
            # Copies of the weights rather than zeros: so the window is sharded as they are, also under jit.
            jax.tree.map(
                lambda leaf: jnp.repeat(single(leaf)[None], window, 0) if is_averaged(leaf) else placeholder(), params
            ),
            jnp.zeros(window, jnp.int32),
            counter(),
            counter(),
            counter(),
        )

    def take(state: LAWAState, params: Tree, step: Array) -> LAWAState:
        slot = state.count % window
        snapshots = jax.tree.map(
            lambda leaf, held: (
                lax.dynamic_update_index_in_dim(held, single(leaf), slot, 0) if is_averaged(leaf) else held
            ),
            params,
            state.snapshots,
        )
        steps = jnp.where(jnp.arange(window) == slot, step, state.steps)
        return state._replace(snapshots=snapshots, steps=steps, count=state.count + 1)

    def mean(state: LAWAState) -> Tree:
        held = jnp.minimum(state.count, window)
        oldest = jnp.where(state.count < window, 0, state.count % window)
        partial = average.needed < window

        def snapshot(leaf: Array, number: int) -> Array:
            value = lax.dynamic_index_in_dim(leaf, (oldest + number) % window, 0, keepdims=False)
            if not average.is_mean:
                value = value * share[held, number]
            # What is neutral in a sum, for a snapshot that is not there yet.
            return jnp.where(number < held, value, -0.0) if partial and number else value

        def of(leaf: Array) -> Array:
            if leaf.ndim == 0:
                return leaf
            total = pairwise_sum(snapshot(leaf, number) for number in range(window))
            return divided(total, held) if average.is_mean else total

        share = coefficients(average, window)
        return jax.tree.map(of, state.snapshots)

    return averager(average, init=init, take=take, mean=mean, check_finite=check_finite, axes=(window,))


def coefficients(average: Average, window: int) -> Array:
    """float32[L + 1, L]: the weight of each snapshot, oldest first, where so many are held; 0 for others."""
    table = np.zeros((window + 1, window), np.float32)
    for count in range(average.needed, window + 1):
        table[count, :count] = average.coefficients(count)
    return jnp.asarray(table)


def divided(total: Array, count: Array) -> Array:
    """The quotient to the last bit.

    By one number for all elements XLA would multiply with its reciprocal; a divisor of each element it cannot turn.
    """
    return total / jnp.where(total == total, jnp.float32(count), jnp.float32(1))
