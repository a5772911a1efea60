"""How horizon, interval, window and decay relate. Pure Python.

Terms, after Ajroldi, Orvieto and Geiping, "When, Where and Why to Average Weights?" (ICML 2025, arXiv 2502.06761):

- update t: the number of completed optimizer updates, 1, 2, ...
- interval nu: updates between snapshots; window L: snapshots in a LAWA average; decay beta: of an EMA over snapshots;
- horizon h: the share of a training budget of T updates that an average covers, nu * L / T. About 1 % serves well
  (their Fig. 3).
"""

import logging
from dataclasses import dataclass
from typing import Any

from weight_averaging.averages.checks import check_count, check_decay, check_horizon, check_share
from weight_averaging.moved import deprecated

logger = logging.getLogger("weight_averaging")


def interval_and_window(horizon: float, window: int, step_hint: int) -> tuple[int, int]:
    """Interval nu and window L that cover the share `horizon` of `step_hint` updates with at most `window` snapshots.

    nu = round(h T / L); where that would fall below 1, nu is 1 and L shrinks so that the horizon stays.

    >>> interval_and_window(0.01, 20, 120_000)
    (60, 20)
    >>> interval_and_window(0.01, 20, 1_000)
    (1, 10)
    """
    check_horizon(horizon)
    check_count("window", window)
    check_count("step_hint", step_hint)
    interval = horizon * step_hint / window
    if interval >= 1:
        return round(interval), window
    return 1, max(1, round(horizon * step_hint))


@dataclass(frozen=True)
class Suggestion:
    """What to average in a run of known length, from `suggest`.

    Attributes:
        horizon: the share of the run that the average covers.
        interval, window: of a LAWA.
        decay: of the EMA that is as old on average, with the same interval.
    """

    horizon: float
    interval: int
    window: int
    decay: float


def suggest(total_updates: int) -> Suggestion:
    """Where to begin, for a run of `total_updates`; docs/choosing.md tells what it rests on.

    >>> suggest(120_000)
    Suggestion(horizon=0.01, interval=60, window=20, decay=0.9047619047619048)
    >>> suggest(3_000)
    Suggestion(horizon=0.04, interval=6, window=20, decay=0.9047619047619048)
    """
    interval, window = for_run(total_updates, None, WINDOW)
    return Suggestion(suggested_horizon(total_updates), interval, window, decay_from_window(window))


def for_run(total_updates: int, horizon: float | None, window: int) -> tuple[int, int]:
    """Interval and window that cover a share of a run; see `interval_and_window`.

    Args:
        total_updates: of the optimizer, in the whole run.
        horizon: the share, in (0, 1]; None: `suggested_horizon`.
        window: snapshots that cover it, at most.
    """
    check_count("total_updates", total_updates)
    share = suggested_horizon(total_updates) if horizon is None else horizon
    interval, length = interval_and_window(share, window, total_updates)
    if length == 1 < window:
        text = "%d updates: %g %% of them is one snapshot, so the average is the latest weights. total_updates counts "
        logger.warning(text + "optimizer updates, not epochs", total_updates, 100 * share)
    return interval, length


WINDOW = 20  # snapshots: of the same horizon, more or fewer hardly matter (docs/results/horizon)


def suggested_horizon(total_updates: int) -> float:
    """1 % of a run of 10,000 updates or more, 4 % of a shorter one.

    Args:
        total_updates: of the optimizer, in the whole run.

    1 % is the advice of Ajroldi et al. (Fig. 3), from runs of 10,000 to 200,000 updates. 4 % lies in what
    was best on this project's miniature workloads, runs of 1,500 to 3,000 updates: 2 to 7 % to a target, 4 to 8 %
    half-way (docs/results/horizon).
    """
    return 0.01 if check_count("total_updates", total_updates) >= 10_000 else 0.04


def horizon(interval: int, window: float, step_hint: float) -> float:
    """The share of `step_hint` updates that `window` snapshots, `interval` updates apart, cover: nu * L / T.

    Args:
        window: L >= 1; of an EMA `window_from_decay`, which need not be whole.
        step_hint: T; of a schedule that is a share of a run the updates of that, which need not be whole.
    """
    if window < 1 or step_hint <= 0:
        raise ValueError(f"a horizon is of a window >= 1 in a number of updates, not of {window!r} in {step_hint!r}")
    return check_count("interval", interval) * window / step_hint


def decay_from_window(window: int) -> float:
    """The decay of the EMA whose snapshots are as old on average as those of a window of L: (L - 1) / (L + 1)."""
    return (check_count("window", window) - 1) / (window + 1)


def window_from_decay(decay: float) -> float:
    """The window (not rounded) whose snapshots are as old on average as an EMA's: (1 + beta) / (1 - beta).

    Args:
        decay: beta, in [0, 1).
    """
    return (1 + check_decay(decay)) / (1 - decay)


def exponent_from_share(share: float) -> float:
    """The exponent of the power-function average that is as old as a window over a share of the updates so far.

    It is gamma = 2 / h - 2 for the share h.
    A snapshot of update s <= t has a weight proportional to s^gamma. So the mean age is t / (gamma + 2), and the
    window's is h t / 2. A share of 1 is the plain mean of all.

    >>> exponent_from_share(0.1), exponent_from_share(1)
    (18.0, 0.0)
    """
    return 2 / check_share(share) - 2


def exponent_from_horizon(horizon: float) -> float:
    """The name that `exponent_from_share` had until 0.2.0, when a horizon was a share of the updates so far too."""
    deprecated("exponent_from_horizon", "exponent_from_share")
    return exponent_from_share(horizon)


def warmup_weight(decay: float, count: Any, maximum: Any = max) -> Any:
    """The weight with which a snapshot enters that comes after `count` others, where the decay begins small.

    That decay is min(decay, (1 + count) / (10 + count)), the schedule of TensorFlow's ExponentialMovingAverage, which
    others took over. One minus it is max(1 - decay, 9 / (10 + count)), which loses nothing to cancellation.

    Args:
        count: also an array of another framework, with that framework's `maximum`.

    >>> [round(1 - warmup_weight(0.999, count), 3) for count in (1, 10, 100, 100_000)]
    [0.182, 0.55, 0.918, 0.999]
    """
    weight: float = maximum(1.0 - decay, 9.0 / (10.0 + count))
    return weight
