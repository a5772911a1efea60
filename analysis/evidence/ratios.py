"""Updates that an average needs over those that its raw run needs: to a target, and to scores along the way.

The rules are in docs/results/rules.md, sections 10 and 11. Crossings are of running medians of five evaluations,
interpolated. Baseline and average have one grid of evaluations. A miss counts with the whole run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.evidence.data import RAW, Run
from analysis.measures import crossing, intervals
from analysis.measures.intervals import Means

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
LEAST_WHOLE = 4  # workloads without any miss, with fewer of which a claim over all is undecided


@dataclass(frozen=True)
class Pair:
    """Logarithm of a ratio of updates, and which of the two runs never got there."""

    log: float
    missed: bool
    baseline_missed: bool = False


def pair(run: Run, name: str, level: float, baseline: Run | None = None) -> Pair:
    """Updates of an average to a level (signed, more is better) over those of the raw weights.

    Args:
        baseline: another run, on its own evaluations; default: the run itself, on those of the average.
    """
    other = baseline or run
    mine = _first(run, name, level, None)
    theirs = _first(other, RAW, level, name if baseline is None else None)
    log = np.log(min(mine, float(run.steps)) / min(theirs, float(other.steps)))
    return Pair(float(log), bool(np.isinf(mine)), bool(np.isinf(theirs)))


def along(run: Run, name: str, share: float, baseline: Run | None = None) -> Pair | None:
    """Updates to the best that the raw weights have by a share of training, over theirs; None where they have none.

    Args:
        baseline: as of `pair`.
    """
    other = baseline or run
    steps, values = _best(other, RAW, name if baseline is None else None, crossing.MEDIAN_OF)
    by_then = values[steps <= share * other.steps + 0.5]
    if not len(by_then):
        return None
    start = crossing.first(steps, values, by_then[-1], lower=False)
    there = _first(run, name, by_then[-1], None)
    return Pair(float(np.log(min(there, float(run.steps)) / start)), bool(np.isinf(there)))


def reached(run: Run, share: float) -> float:
    """The update by which the raw weights have the best that they have by a share of training."""
    steps, values = _best(run, RAW, None, crossing.MEDIAN_OF)
    return crossing.first(steps, values, values[steps <= share * run.steps + 0.5][-1], lower=False)


def target(runs: Sequence[Run]) -> float:
    """The signed validation target: the workload's at its own length, else found anew from these baselines."""
    facts = runs[0].facts
    if facts["length"] == 1:
        return runs[0].sign * float(facts["validation_target"])
    reached = []
    for run in runs:
        steps, values = run.curve(RAW)
        reached.append(values[steps <= facts["target_share"] * run.steps + 0.5].max())
    return float(np.median(reached))


def gap(run: Run, name: str, others: Sequence[str], share: float, grid: str) -> float:
    """Log ratio of updates of an average over those of the best of others, to what the raw run has by a share.

    All on the grid of one average's evaluations, which may be so coarse that nothing is smoothed. NaN where the raw run
    has no value by then, or none of them gets there.
    """
    steps, values = _best(run, RAW, grid, median_of=1)
    by_then = values[steps <= share * run.steps + 0.5]
    if not len(by_then):
        return float("nan")
    mine = crossing.first(*_best(run, name, grid, 1), by_then[-1], lower=False)
    best = min(crossing.first(*_best(run, other, grid, 1), by_then[-1], lower=False) for other in others)
    if np.isinf(mine) and np.isinf(best):
        return float("nan")
    return float(np.log(min(mine, float(run.steps)) / min(best, float(run.steps))))


def crossed(run: Run, name: str, level: float) -> float:
    """The update at which a curve crosses a signed level; infinite if never."""
    return _first(run, name, level, None)


def _first(run: Run, name: str, level: float, grid: str | None) -> float:
    return crossing.first(*_best(run, name, grid, crossing.MEDIAN_OF), level, lower=False)


def _best(run: Run, name: str, grid: str | None, median_of: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps and the best so far of the smoothed curve."""
    steps, values = run.curve(name, grid=grid)
    return steps, np.maximum.accumulate(crossing.smooth(values, median_of))


@dataclass(frozen=True)
class Ratio:
    """A ratio with its 95 % interval, its bound where runs missed, and how many seeds it is of."""

    ratio: float
    low: float
    high: float
    bound: str
    seeds: int

    @property
    def verdict(self) -> str:
        return intervals.verdict(self.low, self.high, self.bound)

    def shown(self) -> str:
        low = "..." if self.bound in ("<=", "?") else f"{self.low:.2f}"
        high = "..." if self.bound in (">=", "?") else f"{self.high:.2f}"
        ends = f" ({low} to {high})" if np.isfinite(self.low) else ""
        return f"{self.bound.replace('?', '? ')}{self.ratio:.2f}{ends}"


@dataclass(frozen=True)
class Ratios:
    """Of one average on all workloads.

    Attributes:
        workloads: each by itself.
        suite: over seeds, these workloads given.
        any: over workloads, a number each: for other workloads like these.
        whole: the same over the workloads on which nobody missed; None with fewer than `LEAST_WHOLE` of them, or where
            these are all.
    """

    workloads: dict[str, Ratio]
    suite: Ratio
    any: Ratio
    whole: Ratio | None
    missing: int  # workloads on which somebody missed

    def says(self) -> str:
        """What may be claimed over all workloads, by section 11."""
        own = intervals.verdict(self.any.low, self.any.high)
        if not self.missing or own == "open":
            return own
        return own if self.whole is not None and self.whole.verdict == own else "open"


def summary(pairs: Mapping[str, Sequence[Pair]]) -> Ratios:
    """Of the pairs of each workload, one a seed. A workload of a single seed gets no interval, and then the suite none:
    a spread borrowed from few others would look like knowledge."""
    means: dict[str, Means] = {
        workload: intervals.means(np.array([one.log for one in given])) for workload, given in pairs.items()
    }
    bounds = {workload: _bound(given) for workload, given in pairs.items()}
    together = intervals.together(list(means.values()))
    low, high = intervals.each(together)
    seeds = {workload: len(given) for workload, given in pairs.items()}
    single = together.seeds < 2
    low, high = np.where(single, np.nan, low), np.where(single, np.nan, high)
    of_suite: tuple[Any, Any] = (np.nan, np.nan) if single.any() else intervals.suite(together)
    each = {
        workload: _ratio(together.mean[i], low[i], high[i], bounds[workload], seeds[workload])
        for i, workload in enumerate(means)
    }
    total, everyone = sum(seeds.values()), _bound([one for given in pairs.values() for one in given])
    mean = float(together.mean.mean())
    whole = [float(means[workload].mean) for workload, bound in bounds.items() if not bound]
    missing = len(means) - len(whole)
    return Ratios(
        each,
        _ratio(mean, *of_suite, everyone, total),
        _ratio(mean, *intervals.student(together.mean), everyone, total),
        _over(whole) if missing and len(whole) >= LEAST_WHOLE else None,
        missing,
    )


def _over(logs: Sequence[float]) -> Ratio:
    values = np.array(logs)
    return _ratio(values.mean(), *intervals.student(values), "", len(values))


def _ratio(mean: Any, low: Any, high: Any, bound: str, seeds: int) -> Ratio:
    """From logarithms."""
    return Ratio(float(np.exp(mean)), float(np.exp(low)), float(np.exp(high)), bound, seeds)


def _bound(pairs: Sequence[Pair]) -> str:
    ours, theirs = any(one.missed for one in pairs), any(one.baseline_missed for one in pairs)
    return "?" if ours and theirs else ">=" if ours else "<=" if theirs else ""
