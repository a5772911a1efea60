"""EMA: an exponential average of snapshots."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from weight_averaging.averages import exponential
from weight_averaging.averages.checks import check_count
from weight_averaging.averages.horizon import WINDOW, decay_from_window, for_run
from weight_averaging.jax.averager import Averager, averager, counter
from weight_averaging.jax.trees import Tree, check_averaged, is_averaged, placeholder, single, single_copy


class EMAState(NamedTuple):
    """An exponential average.

    Attributes:
        ema: a tree like the parameters, float32; a leaf that is not averaged is float32[].
        snapshot_step: int32[], the update of the last snapshot taken in; 0 before the first.
        step: int32[], the last update seen.
        count: int32[], snapshots taken in so far.
        refused: int32[], snapshots that were due and not finite.
    """

    ema: Tree
    snapshot_step: Array
    step: Array
    count: Array  # type: ignore[assignment]  # the name that such counters have in optax
    refused: Array


def ema(
    decay: float | None = None,
    interval: int = 1,
    start: int = 1,
    *,
    warmup: bool = False,
    horizon: float | None = None,
    check_finite: bool = True,
) -> Averager:
    """Exponential average of the weights (Algorithm 2 of Ajroldi et al., ICML 2025, arXiv 2502.06761).

    Starts at the first snapshot, so that nothing of the random initialisation is in it, then after every `interval`
    updates

        ema <- decay * ema + (1 - decay) * theta_t,

    so that no correction for the start ("debiasing") is needed. Memory: 4 bytes a parameter.

    Args:
        decay: weight of the past, in [0, 1). `weight_averaging.averages.horizon.decay_from_window` gives the decay that
            matches a LAWA window.
        interval: updates between snapshots, nu >= 1.
        start: the first update whose weights may be collected.
        warmup: let the (k+1)-th snapshot enter with decay min(decay, (1 + k) / (10 + k)).
        horizon: instead of a decay, the share of the updates so far that the average covers, in (0, 1]: the
            power-function average of Karras et al. (EDM2, arXiv 2312.02696, section 3.1) with exponent 2 / horizon - 2.
        check_finite: as for `lawa`.
    Raises:
        TypeError: not just one of `decay` and `horizon`.
        ValueError: an argument that cannot be, in one line.

    >>> avg = ema(decay=0.5)
    >>> state = avg.init({"w": jnp.zeros(1)})
    >>> for step in (1, 2, 3):
    ...     params = {"w": jnp.full(1, float(step))}
    ...     state = avg.update(state, params, step)
    >>> avg.average(state, params)["w"].tolist()
    [2.25]
    """
    interval, start = check_count("interval", interval), check_count("start", start)
    described = exponential(decay, horizon, warmup, interval, start)

    def init(params: Tree) -> EMAState:
        check_averaged(params)
        copies = jax.tree.map(lambda leaf: single_copy(leaf) if is_averaged(leaf) else placeholder(), params)
        return EMAState(copies, counter(), counter(), counter(), counter())

    def take(state: EMAState, params: Tree, step: Array) -> EMAState:
        weight = jnp.asarray(described.weight(state.count + 1, jnp), jnp.float32)
        # The nearer of both ends is where rounding does least, and the other framework begins: torch.lerp.
        from_held = weight < 0.5
        share = jnp.where(from_held, weight, weight - 1)
        first = state.count == 0

        def blend(leaf: Any, held: Array) -> Array:
            if not is_averaged(leaf):
                return held
            value = single(leaf)
            return jnp.where(first, value, jnp.where(from_held, held, value) + share * (value - held))

        blended = jax.tree.map(blend, params, state.ema)
        return state._replace(ema=blended, snapshot_step=step, count=state.count + 1)

    settings = {"decay": decay, "horizon": horizon, "warmup": warmup, "interval": interval, "start": start}
    return averager(
        {"averager": "EMA", **settings},
        init=init,
        take=take,
        mean=lambda state: state.ema,
        needed=1,
        check_finite=check_finite,
    )


def ema_for_run(total_updates: int, *, horizon: float | None = None, window: int = WINDOW, **options: Any) -> Averager:
    """The EMA as old on average as `lawa_for_run` of the same arguments."""
    interval, length = for_run(total_updates, horizon, window)
    return ema(decay_from_window(length), interval, **options)
