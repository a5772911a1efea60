"""Intervals at 95 % of means of logarithms: the one way in which uncertainty is worked out here.

All are Student's t. How often they hold the truth, measured on normal logarithms (tests/analysis/measures/
test_intervals.py; 3, 5 and 10 seeds, 4 and 8 workloads, spreads equal, up to 2.5 and 10 times apart, or one 10 times
the others):

- `suite`, over seeds with the workloads given: .93 to .97.
- `student` over workloads, a number each: .95 to .97, but .97 to .99 where spreads over seeds differ tenfold and
  workloads hardly.
- `each`, a single workload: .95 from `OWN_FROM` seeds on. With 3 seeds .93 to .95 in the mean over workloads, and down
  to .90 on the one with the largest spread. Three seeds do not tell whether spreads are alike.
- `vertex`, the best point of a parabola: .95, also where seeds differ in it. With 3 seeds and noise as large as
  what is at stake, one interval in four is the whole range.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
# Ratios that differ from 1 by less are called equal (docs/results/rules.md).
MARGIN = 1.05
# With as many pairs a workload's own spread says enough. With fewer it is pooled over workloads, if these look alike.
OWN_FROM = 5
# Spreads look alike if Bartlett's test gives at least this probability: below, spreads that differ go unnoticed too
# often, and the workload with the largest is covered worst.
ALIKE = 0.5


class Interval(NamedTuple):
    """Both ends, arrays or numbers; NaN where nothing tells the spread."""

    low: np.ndarray
    high: np.ndarray


class Means(NamedTuple):
    """Means over seeds, workloads along the last axis.

    Attributes:
        mean: of the logarithms.
        variance: of the mean, not of a seed; NaN of a single one.
        freedom: the degrees of freedom by which the variance is known.
        seeds: how many, or of how many pairs.
    """

    mean: np.ndarray
    variance: np.ndarray
    freedom: np.ndarray
    seeds: np.ndarray


def means(values: np.ndarray) -> Means:
    """Of values with seeds along the last axis."""
    seeds = values.shape[-1]
    mean = values.mean(axis=-1)
    variance = values.var(axis=-1, ddof=1) / seeds if seeds > 1 else np.full_like(mean, np.nan)
    return Means(mean, variance, np.full_like(mean, seeds - 1), np.full_like(mean, seeds))


def difference(ours: Means, theirs: Means) -> Means:
    """Of two that share no seed (Welch 1947)."""
    variance = ours.variance + theirs.variance
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = variance**2 / (ours.variance**2 / ours.freedom + theirs.variance**2 / theirs.freedom)
    freedom = np.where(variance == 0, ours.freedom + theirs.freedom, np.nan_to_num(freedom))
    return Means(ours.mean - theirs.mean, variance, freedom, np.minimum(ours.seeds, theirs.seeds))


def together(several: Sequence[Means]) -> Means:
    """Those of single workloads, put side by side."""
    return Means(*(np.array(part, dtype=float) for part in zip(*several)))


def each(of: Means) -> Interval:
    """Of every workload by itself.

    The spread is the workload's own from `OWN_FROM` seeds on. With fewer it is pooled over those workloads, with the
    degrees of freedom of them all, unless they differ by Bartlett's test. A spread of zero or of a single seed tells
    nothing but the grid of evaluations: pooled as well.
    """
    spread, freedom = _pooled(of)
    few = (of.seeds < OWN_FROM) & _alike(of) | ~(of.variance > 0)
    variance = np.where(few, spread / of.seeds, of.variance)
    return _t(of.mean, variance, np.where(few, freedom, of.freedom))


def suite(of: Means) -> Interval:
    """Of the mean over these workloads, for other seeds (Welch 1947, Satterthwaite 1946); a single seed's spread is
    taken from the others."""
    spread, freedom = _pooled(of)
    single = np.isnan(of.variance)
    variance = np.where(single, spread / of.seeds, of.variance)
    degrees = np.where(single, freedom, of.freedom)
    total = variance.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        known = total**2 / (variance**2 / np.maximum(degrees, 1e-9)).sum(axis=-1)
    return _t(of.mean.mean(axis=-1), total / of.mean.shape[-1] ** 2, known)


def student(values: np.ndarray) -> Interval:
    """Of the mean of values along the last axis: of workloads, a number each, for other workloads like these.

    It holds where their variances differ too (Bakirov and Szekely 2005, by Ibragimov and Muller 2010)."""
    of = means(values)
    return _t(of.mean, of.variance, of.freedom)


def vertex(a: np.ndarray, b: np.ndarray) -> Interval:
    """Of where the mean over seeds of a x^2 + b x has its optimum, from the coefficients of each (last axis).

    It has all points at which t does not tell the mean slope b + 2 a x from zero (Fieller 1954). Nothing is divided,
    and seeds may have optima of their own. Without end where the curvature may be zero.
    """
    n = a.shape[-1]
    if n < 2:
        return Interval(np.full(a.shape[:-1], np.nan), np.full(a.shape[:-1], np.nan))
    scale = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) ** 2 / n
    ma, mb = a.mean(axis=-1), b.mean(axis=-1)
    shared = ((a - ma[..., None]) * (b - mb[..., None])).sum(axis=-1) / (n - 1)
    square = 4 * (ma**2 - scale * a.var(axis=-1, ddof=1))
    linear = 4 * (ma * mb - scale * shared)
    constant = mb**2 - scale * b.var(axis=-1, ddof=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        half = np.sqrt(np.maximum(linear**2 - 4 * square * constant, 0)) / (2 * square)
        middle = -linear / (2 * square)
    known = square > 0
    return Interval(np.where(known, middle - half, -np.inf), np.where(known, middle + half, np.inf))


def verdict(low: float, high: float, bound: str = "", margin: float = MARGIN) -> str:
    """What an interval of a ratio says: sooner, later, equal (within the margin), sooner or later but equal, or open.

    Equal means two one-sided tests at 2.5 %: the interval lies within the margin and its inverse. An end that censored
    runs leave open says nothing (">=": the upper, "<=": the lower, "?": both).
    """
    low, high = (0.0 if bound in ("<=", "?") else low), (np.inf if bound in (">=", "?") else high)
    side = "sooner" if high < 1 else "later" if low > 1 else ""
    equal = f"equal within {margin - 1:.0%}" if 1 / margin < low and high < margin else ""
    return ", ".join(filter(None, [side, equal])) or "open"


def _t(mean: np.ndarray, variance: np.ndarray, freedom: np.ndarray) -> Interval:
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * np.sqrt(variance)
    return Interval(mean - reach, mean + reach)


def _pooled(of: Means) -> tuple[np.ndarray, np.ndarray]:
    """The variance of a seed over all workloads, and its degrees of freedom; NaN where no workload has two seeds."""
    weights = np.where(np.isnan(of.variance), 0.0, of.freedom)
    freedom = weights.sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = (weights * np.nan_to_num(of.variance * of.seeds)).sum(axis=-1, keepdims=True) / freedom
    return np.where(spread > 0, spread, np.nan), freedom


def _alike(of: Means) -> np.ndarray:
    """Whether Bartlett's test (1937) leaves the spreads of the workloads as one: from variances alone, which
    `scipy.stats.bartlett` does not take. Those of zero have no part in it."""
    there = of.variance > 0
    weights = np.where(there, of.freedom, 0.0)
    count, freedom = there.sum(axis=-1, keepdims=True), weights.sum(axis=-1, keepdims=True)
    spread = np.where(there, of.variance * of.seeds, 1.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        pooled = (weights * spread).sum(axis=-1, keepdims=True) / freedom
        distance = freedom * np.log(pooled) - (weights * np.log(spread)).sum(axis=-1, keepdims=True)
        inverse = np.where(there, 1 / np.where(there, of.freedom, 1.0), 0.0).sum(axis=-1, keepdims=True)
        scale = 1 + (inverse - 1 / freedom) / (3 * (count - 1))
        chance = stats.chi2.sf(distance / scale, count - 1)
    return (count < 2) | (chance >= ALIKE)
