"""The growing average whose share follows the learning rate. Pure Python."""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

from weight_averaging.averages.average import NUMBERS, Average
from weight_averaging.averages.checks import check_rate, check_share
from weight_averaging.errors import UsageError
from weight_averaging.words import inline

logger = logging.getLogger("weight_averaging")

_SMALLEST = 1e-30  # in the place of a divisor that is 0, in float32 too


@dataclass(frozen=True, kw_only=True)
class FollowsRate(Average):
    """A growing average whose share of the updates so far is `share` times the root of rate over top rate.

    Where the learning rate is annealed, old snapshots hold an average of a constant share back. This one gets shorter
    with the rate: at a constant rate it is `Growing`, at a rate of 0 the latest snapshot (docs/growing.md). Whether it
    gains anything by that is a lead, not evidence.

    Of snapshot number k with learning rate r_k, let g_k = share / 2 sqrt(r_k / top). Its updates k are to be k g_k old
    on average, in snapshots. That age grows by m_k = k g_k - (k - 1) g_{k-1}, and so the snapshot enters with decay

        d_k = (1 - 1/k)^e,  e = max(1, 2 (1 - m_k) / (g_k + g_{k-1})).

    With g constant, e is the exponent of `Growing`. At e = 1, the plain mean of all, an average cannot grow faster.

    Args:
        share: at the top rate, of the updates so far, in (0, 1].
        top_rate: the top of the schedule; None: the highest rate of a snapshot so far, so that it is `Growing` while
            the rate is warmed up.
    """

    share: float = 0.15
    top_rate: float | None = None
    is_recursive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.share)
        top = self.top_rate
        if top is not None and not (isinstance(top, Real) and not isinstance(top, bool) and 0 < top < math.inf):
            raise ValueError(f"top_rate must be a number > 0, or None, not {inline(top)}")

    @property
    def begins_with(self) -> tuple[float, float]:
        """What `enter` takes as `before` at the first snapshot."""
        return self.share / 2, 0.0

    def enter(
        self, number: Any, rate: Any, before: tuple[Any, Any], functions: Any = NUMBERS
    ) -> tuple[Any, tuple[Any, Any]]:
        """The weight with which snapshot number 1, 2, ... enters, and what the next one takes as `before`.

        Args:
            number, rate: numbers, or arrays of another library.
            before: g_{k-1}, and the highest rate before.
            functions: that library (`jax.numpy`).
        """
        half, top = before
        top = functions.maximum(top, rate)
        relative = rate / functions.maximum(top if self.top_rate is None else self.top_rate, _SMALLEST)
        now = self.share / 2 * functions.sqrt(functions.minimum(relative, 1.0))
        growth = now + (number - 1) * (now - half)
        exponent = functions.maximum(1.0, (1.0 - growth) / functions.maximum((now + half) / 2, _SMALLEST))
        return -functions.expm1(exponent * functions.log1p(-1.0 / number)), (now, top)

    def weight(self, number: Any, functions: Any = NUMBERS) -> Any:
        raise UsageError(f"{self} has no weights without learning rates")

    def weights(self, rates: Sequence[float]) -> list[float]:
        """Of the snapshots number 2, 3, ..., as `weight` has them, of snapshots with these learning rates."""
        before, result = self.begins_with, []
        for number, rate in enumerate(rates, start=1):
            weight, before = self.enter(number, rate, before)
            result.append(weight)
        return result[1:]


def tell_of_unknown_top(average: FollowsRate) -> None:
    """Warn of an average that goes on from one which knew no learning rates, if it needs the highest of them."""
    if average.top_rate is None:
        logger.warning(
            "the saved average knows no learning rates: %s takes the highest from here on for the top of the schedule; "
            "give top_rate=... where it was higher before",
            average,
        )


def checked_rate(rate: Any, averages: Iterable[Average]) -> float | None:
    """A learning rate that one of the averages follows, as a float; None where none does.

    Raises:
        TypeError: it is missing.
        ValueError: it is no number >= 0.
    """
    followers = [average for average in averages if isinstance(average, FollowsRate)]
    if not followers:
        return None
    if rate is None:
        raise TypeError(
            f"{followers[0]} follows the learning rate, which is missing: give it to every update, "
            "update(step, learning_rate=...)"
        )
    return check_rate(rate)
