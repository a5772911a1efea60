"""Where averages over pytrees begin: any description, and LAWA and EMA by their arguments."""

import dataclasses
from typing import Any, Literal, overload

from weight_averaging import averages
from weight_averaging.averages import Average, FollowsRate
from weight_averaging.averages.average import check_along_training
from weight_averaging.averages.checks import check_flag
from weight_averaging.averages.horizon import WINDOW, decay_from_window, for_run
from weight_averaging.averages.kinds import share_of
from weight_averaging.elsewhere import checks_arguments
from weight_averaging.errors import UsageError
from weight_averaging.jax.averager import Averager
from weight_averaging.jax.checks import check_averaged
from weight_averaging.jax.exponential import (
    CompensatedAverager,
    CompensatedEMAState,
    CompensatedRateAverager,
    EMAState,
    RateAverager,
    RecursiveAverager,
)
from weight_averaging.jax.host_window import HostLAWAState, HostWindowAverager, goes_to_host
from weight_averaging.jax.trees import Tree
from weight_averaging.jax.window import LAWAState, WindowAverager


@checks_arguments()
def averaging(average: Average, *, check_finite: bool = True, compensated: bool = False) -> Averager[Any]:
    """Any average along training, as pure functions.

    Args:
        average: a description from `weight_averaging.averages`, or one of your own (docs/own_average.md), with an
            interval.
        check_finite: refuse weights with a NaN or an infinity; see `lawa`.
        compensated: of a recursion; see `ema`.
    Raises:
        TypeError, ValueError: it cannot be followed along training, in one line.

    >>> import jax.numpy as jnp
    >>> avg = averaging(averages.Weighted(weights=(0.25, 0.75), interval=1))
    >>> state = avg.init({"w": jnp.zeros(1)})
    >>> for step in (1, 2, 3):
    ...     params = {"w": jnp.full(1, float(step))}
    ...     state = avg.update(state, params, step)
    >>> avg.average(state, params)["w"].tolist()
    [2.75]
    """
    check_along_training(average)
    check_flag("compensated", compensated)
    if average.held is not None:
        if compensated:
            raise UsageError(f"{average} is made anew of its snapshots, which needs no compensated=True: leave it out")
        return WindowAverager(average, check_finite)
    if isinstance(average, FollowsRate):
        return (CompensatedRateAverager if compensated else RateAverager)(average, check_finite)
    return (CompensatedAverager if compensated else RecursiveAverager)(average, check_finite)


@checks_arguments()
def averaging_for(
    params: Tree,
    average: Average,
    *,
    placement: str = "auto",
    check_finite: bool = True,
    compensated: bool = False,
) -> Averager[Any]:
    """`averaging`, with a window in host memory where there is no room on the device.

    Args:
        params: the parameters, on their devices.
        average, check_finite, compensated: see `averaging`.
        placement: of a window: `"device"` is where the parameters are, `"host"` is host memory. `"auto"` is the device
            if the window takes no more than a tenth of its free memory. A recursion is always on the device.
    Raises:
        MemoryError: the snapshots would not fit, before any is taken.
        TypeError, ValueError: as `averaging`, or there is no such placement.
    """
    check_along_training(average)
    check_averaged(params)
    on_device = averaging(average, check_finite=check_finite, compensated=compensated)
    if average.held is not None and goes_to_host(params, average.held, placement):
        return HostWindowAverager(average, check_finite)
    return on_device


@checks_arguments("lawa_for_run(total_updates=...)")
def lawa(
    interval: int, window: int, start: int = 1, allow_partial: bool = False, check_finite: bool = True
) -> Averager[LAWAState]:
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

    >>> import jax.numpy as jnp
    >>> avg = lawa(interval=1, window=3)
    >>> state = avg.init({"w": jnp.zeros(1)})
    >>> for step in (1, 2, 3, 4):
    ...     params = {"w": jnp.full(1, float(step))}
    ...     state = avg.update(state, params, step)
    >>> avg.average(state, params)["w"].tolist()
    [3.0]
    """
    described = averages.LAWA(interval=interval, window=window, start=start, allow_partial=allow_partial)
    return averaging(described, check_finite=check_finite)


@checks_arguments()
def lawa_for_run(
    total_updates: int,
    *,
    horizon: float | None = None,
    window: int = WINDOW,
    start: int = 1,
    allow_partial: bool = False,
    check_finite: bool = True,
) -> Averager[LAWAState]:
    """The LAWA that covers a share of a run whose length is known.

    Args:
        total_updates: of the run, T.
        horizon: the share of it that the window covers, in (0, 1]; None: `averages.horizon.suggested_horizon`, 1 % of a
            run of 10,000 updates or more and 4 % of a shorter one.
        window: snapshots that cover it, at most: interval = horizon * T / window.
        start, allow_partial, check_finite: see `lawa`.

    >>> dict(lawa_for_run(120_000).settings)["interval"]
    60
    """
    interval, window = for_run(total_updates, horizon, window)
    return lawa(interval, window, start, allow_partial, check_finite)


@checks_arguments("lawa_for_run(total_updates=...)")
def host_lawa(
    interval: int, window: int, start: int = 1, allow_partial: bool = False, check_finite: bool = True
) -> Averager[HostLAWAState]:
    """`lawa` with its window in host memory: the same averages bit for bit, by functions to be called outside jit.

    See `host_window`. Arguments and errors: see `lawa`.
    """
    described = averages.LAWA(interval=interval, window=window, start=start, allow_partial=allow_partial)
    return HostWindowAverager(described, check_finite)


@checks_arguments()
def choose_lawa(
    params: Tree,
    interval: int,
    window: int,
    *,
    placement: str = "auto",
    check_finite: bool = True,
    start: int = 1,
    allow_partial: bool = False,
) -> Averager[Any]:
    """`lawa` or `host_lawa`, as there is room. Arguments and errors: see `averaging_for` and `lawa`."""
    described = averages.LAWA(interval=interval, window=window, start=start, allow_partial=allow_partial)
    return averaging_for(params, described, placement=placement, check_finite=check_finite)


@overload
def ema(
    decay: float | None = None,
    interval: int = 1,
    start: int = 1,
    *,
    warmup: bool = False,
    share: float | None = None,
    horizon: float | None = None,
    check_finite: bool = True,
    compensated: Literal[False] = False,
) -> Averager[EMAState]: ...


@overload
def ema(
    decay: float | None = None,
    interval: int = 1,
    start: int = 1,
    *,
    warmup: bool = False,
    share: float | None = None,
    horizon: float | None = None,
    check_finite: bool = True,
    compensated: bool,
) -> Averager[EMAState | CompensatedEMAState]: ...


@checks_arguments()
def ema(
    decay: float | None = None,
    interval: int = 1,
    start: int = 1,
    *,
    warmup: bool = False,
    share: float | None = None,
    horizon: float | None = None,
    check_finite: bool = True,
    compensated: bool = False,
) -> Averager[Any]:
    """Exponential average of the weights (Algorithm 2 of Ajroldi et al., ICML 2025, arXiv 2502.06761).

    Starts at the first snapshot, so that nothing of the random initialisation is in it, then after every `interval`
    updates

        ema <- decay * ema + (1 - decay) * theta_t,

    so that no correction for the start ("debiasing") is needed. Memory: 4 bytes a parameter, 8 with `compensated`.

    Args:
        decay: weight of the past, in [0, 1). `weight_averaging.averages.horizon.decay_from_window` gives the decay that
            matches a LAWA window.
        interval: updates between snapshots, nu >= 1.
        start: the first update whose weights may be collected.
        warmup: let the (k+1)-th snapshot enter with decay min(decay, (1 + k) / (10 + k)).
        share: instead of a decay, the share of the updates so far that the average covers, in (0, 1]. It is the
            power-function average of Karras et al. (EDM2, arXiv 2312.02696, section 3.1) with exponent 2 / share - 2.
        horizon: the name that `share` had until 0.2.0, and has in `settings`.
        check_finite: as for `lawa`.
        compensated: keep what float32 rounds away, in one more array a leaf (`CompensatedEMAState`). Without it an
            average stands still where the weights differ from it by less than 2^-25 / (1 - decay) of their size: 3e-4
            at a decay of .9999, and at 10^6 updates of a growing average 2e-3. It needs no x64.
    Raises:
        TypeError: not just one of `decay` and `share`.
        ValueError: an argument that cannot be, in one line.

    >>> import jax.numpy as jnp
    >>> avg = ema(decay=0.5)
    >>> state = avg.init({"w": jnp.zeros(1)})
    >>> for step in (1, 2, 3):
    ...     params = {"w": jnp.full(1, float(step))}
    ...     state = avg.update(state, params, step)
    >>> avg.average(state, params)["w"].tolist()
    [2.25]
    """
    share = share_of(share, horizon, stacklevel=4)  # beyond `checks_arguments`
    described = averages.exponential(decay, share, warmup, interval, start)
    given = {"decay": decay, "horizon": share, "warmup": warmup, "interval": described.interval}
    settings = {"averager": "EMA", **given, "start": described.start}
    averager = averaging(described, check_finite=check_finite, compensated=compensated)
    return dataclasses.replace(averager, settings=tuple(settings.items()))


@checks_arguments()
def ema_for_run(
    total_updates: int,
    *,
    horizon: float | None = None,
    window: int = WINDOW,
    warmup: bool = False,
    start: int = 1,
    check_finite: bool = True,
    compensated: bool = False,
) -> Averager[EMAState | CompensatedEMAState]:
    """The EMA as old on average as `lawa_for_run` of the same arguments."""
    interval, length = for_run(total_updates, horizon, window)
    decay = decay_from_window(length)
    return ema(decay, interval, start, warmup=warmup, check_finite=check_finite, compensated=compensated)


@checks_arguments()
def ema_growing(
    share: float = 0.15,
    interval: int = 1,
    start: int = 1,
    *,
    check_finite: bool = True,
    compensated: bool = False,
) -> Averager[EMAState | CompensatedEMAState]:
    """The EMA that covers a constant share of the updates so far (`averages.Growing`, docs/growing.md).

    Args:
        share: in (0, 1].
        interval, start, check_finite, compensated: see `ema`.

    >>> dict(ema_growing().settings)["horizon"]
    0.15
    """
    return ema(None, interval, start, share=share, check_finite=check_finite, compensated=compensated)
