"""The averages that are tracked along every run of the evidence."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from submissions.recipe import schedules
from weight_averaging.averages import EMA, LAWA, Average, Power
from weight_averaging.averages.average import NUMBERS
from weight_averaging.averages.horizon import decay_from_window, exponent_from_share, interval_and_window

LAWA_HORIZONS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16)
EMA_HORIZONS = (0.01, 0.02, 0.04, 0.08)
SHARES = (0.1, 0.15, 0.2)
WINDOW = 20  # snapshots, as in the submissions


@dataclass(frozen=True, kw_only=True)
class FollowsRate(Average):
    """A growing average whose share of the updates so far follows the root of the learning rate.

    Its mean age after update t is to be `share` / 2 * t * sqrt(rate / top rate). So it neither lags nor needs an end
    where the rate is annealed. A snapshot enters a recursion with decay d, and the mean age goes from a to d (a +
    interval). So d is the age wanted over a + interval, cut to what a plain mean of all snapshots would have.

    Args:
        share: at the top rate; that of `Power` with exponent 2 / share - 2.
        schedule, settings, step_hint: the learning rate, a function of submissions.recipe.schedules and what it takes.
    """

    share: float
    schedule: str
    settings: tuple[tuple[str, float], ...]
    step_hint: int
    is_recursive: ClassVar[bool] = True

    def weight(self, number: Any, functions: Any = NUMBERS) -> Any:
        return 1.0 - _decays(self)[number]

    def age_wanted(self, step: int) -> float:
        """In updates, after update `step`, whose rate is that of the schedule after `step` - 1."""
        rate: Callable[..., float] = getattr(schedules, self.schedule)
        hyperparameters = type("Hyperparameters", (), dict(self.settings))
        return self.share / 2 * step * math.sqrt(max(0.0, rate(step - 1, self.step_hint, hyperparameters)))


@functools.lru_cache(maxsize=8)
def _decays(average: FollowsRate) -> list[float]:
    """Of snapshot number 2, 3, ...; the first two entries are not used."""
    assert average.interval is not None
    interval, age, decays = average.interval, 0.0, [0.0, 0.0]
    for number in range(2, average.step_hint // interval + 1):
        oldest = age + interval
        decays.append(min(average.age_wanted(number * interval) / oldest, 1.0 - 1.0 / number))
        age = decays[-1] * oldest
    return decays


def averages(
    step_hint: int, evaluate_every: int, schedule: str | None, settings: dict[str, float]
) -> dict[str, Average]:
    """All of them by name, for a run of `step_hint` updates.

    Windows and EMAs are those of the submissions with a horizon of so many percent and a window of 20. What grows takes
    snapshots every thousandth of the run or a little more often, so that one is taken at every evaluation.

    Args:
        schedule, settings: as of `FollowsRate`; without a schedule that average is left out.
    """
    result: dict[str, Average] = {}
    for horizon in LAWA_HORIZONS:
        interval, window = interval_and_window(horizon, WINDOW, step_hint)
        result[f"lawa_{horizon * 100:g}"] = LAWA(interval=interval, window=window)
    for horizon in EMA_HORIZONS:
        interval, window = interval_and_window(horizon, WINDOW, step_hint)
        result[f"ema_{horizon * 100:g}"] = EMA(interval=interval, decay=decay_from_window(window))
    interval = max(d for d in range(1, max(1, step_hint // 1000) + 1) if evaluate_every % d == 0)
    for share in SHARES:
        result[f"growing_{share * 100:g}"] = Power(gamma=exponent_from_share(share), interval=interval)
    if schedule is None:
        return result
    result["follows_rate_15"] = FollowsRate(
        share=0.15, schedule=schedule, settings=tuple(sorted(settings.items())), step_hint=step_hint, interval=interval
    )
    return result
