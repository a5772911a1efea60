"""LAWA: the mean of the latest L snapshots."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from weight_averaging.averages.checks import check_count
from weight_averaging.averages.horizon import WINDOW, for_run
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


def lawa(
    interval: int, window: int, start: int = 1, allow_partial: bool = False, check_finite: bool = True
) -> Averager:
    """Latest weight averaging (Kaddour 2022; Algorithm 1 of Ajroldi et al., ICML 2025, arXiv 2502.06761).

    The weights after every `interval` updates join a queue of the latest `window`; the average is

        (1 / L) * sum of theta_{t - i nu},  i = 0, ..., L - 1,

    with nu the interval and t the last update that was a multiple of it. Memory: `window` x 4 bytes a parameter.

    Args:
        interval: updates between snapshots, nu >= 1.
        window: snapshots in the average, L >= 1.
        start: the first update whose weights may be collected.
        allow_partial: be ready from the first snapshot on, with the mean over those held.
        check_finite: refuse weights with a NaN or an infinity, for one more read of the weights at each snapshot. Of
            sharded parameters the devices agree on it, by a number a leaf; without it an update has no communication.
    Raises:
        ValueError: an argument that cannot be, in one line.

    >>> avg = lawa(interval=1, window=3)
    >>> state = avg.init({"w": jnp.zeros(1)})
    >>> for step in (1, 2, 3, 4):
    ...     params = {"w": jnp.full(1, float(step))}
    ...     state = avg.update(state, params, step)
    >>> avg.average(state, params)["w"].tolist()
    [3.0]
    """
    interval, start = check_count("interval", interval), check_count("start", start)
    window = check_count("window", window)

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

        def snapshot(leaf: Array, number: int) -> Array:
            value = lax.dynamic_index_in_dim(leaf, (oldest + number) % window, 0, keepdims=False)
            return jnp.where(number < held, value, -0.0) if allow_partial and number else value  # neutral, see pairwise

        def of(leaf: Array) -> Array:
            if leaf.ndim == 0:
                return leaf
            return divided(pairwise_sum(snapshot(leaf, number) for number in range(window)), held)

        return jax.tree.map(of, state.snapshots)

    settings = {"interval": interval, "window": window, "start": start, "allow_partial": allow_partial}
    return averager(
        {"averager": "LAWA", **settings},
        init=init,
        take=take,
        mean=mean,
        needed=1 if allow_partial else window,
        check_finite=check_finite,
        axes=(window,),
    )


def divided(total: Array, count: Array) -> Array:
    """The quotient to the last bit.

    By one number for all elements XLA would multiply with its reciprocal; a divisor of each element it cannot turn.
    """
    return total / jnp.where(total == total, jnp.float32(count), jnp.float32(1))


def lawa_for_run(total_updates: int, *, horizon: float | None = None, window: int = WINDOW, **options: Any) -> Averager:
    """The LAWA that covers a share of a run whose length is known.

    Args:
        total_updates: of the run, T.
        horizon: the share of it that the window covers, in (0, 1]; None: `collection.suggested_horizon`, 1 % of a
            run of 10,000 updates or more and 4 % of a shorter one.
        window: snapshots that cover it, at most: interval = horizon * T / window.
        options: further arguments of `lawa`.

    >>> dict(lawa_for_run(120_000).settings)["interval"]
    60
    """
    interval, window = for_run(total_updates, horizon, window)
    return lawa(interval, window, **options)
