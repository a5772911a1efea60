"""How far ahead a submission is along the way, not at one target only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.measures import crossing, intervals
from analysis.measures.curves import Unit
from analysis.text import with_interval

SHARES = (0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Leads:
    """Ratios to the baseline's updates (or seconds) and their 95 % intervals: three tables of one form, whose columns
    are shares of training."""

    ratio: pd.DataFrame
    low: pd.DataFrame
    high: pd.DataFrame

    def shown(self) -> pd.DataFrame:
        """The ratios with their intervals as text, the shares as words."""
        parts = [part.to_numpy(dtype=float).ravel() for part in (self.ratio, self.low, self.high)]
        cells = np.array([with_interval(*cell) for cell in zip(*parts)], dtype=object).reshape(self.ratio.shape)
        return pd.DataFrame(cells, self.ratio.index, [f"{share:.0%} of training" for share in self.ratio.columns])


def pairs(
    runs: pd.DataFrame,
    smooth: dict[str, dict[str, np.ndarray]],
    targets: pd.DataFrame,
    baseline: str,
    unit: Unit = "steps",
    shares: Sequence[float] = SHARES,
) -> pd.DataFrame:
    """Updates, or seconds, to what the baseline has reached by a share of its training, over the baseline's own.

    What it has reached is the best value of its run of the same study.

    A single target asks who is first at one level; this asks at several, each named by when the baseline gets there.
    Training is the step hint's updates, or the time in which the baseline's median run makes them, at most the budget.
    Crossings are those of running medians, interpolated. The best so far is carried on, also beyond the end of a run
    that reached the target or broke off.

    Args:
        runs: those that count, of `Logs.runs`, one for each submission, workload and study.
        smooth: of `Measured.smooth`.
        targets: of `targets.resolve`.

    Returns:
        Columns workload, submission, study, share, log (of the ratio) and missed: one that never gets there counts with
        the whole training. Without pairs whose baseline had no evaluation by then, or none above its initial weights.
    """
    rows = []
    for workload, target in targets.iterrows():
        here = runs[runs["workload"] == workload]
        sign = -1.0 if target["lower"] else 1.0
        curves = {
            (str(name), study): (smooth[folder][unit], np.maximum.accumulate(sign * smooth[folder]["value"]))
            for name, study, folder in zip(here["submission"], here["study"], here["folder"])
        }
        mine = [smooth[folder] for folder in here.loc[here["submission"] == baseline, "folder"]]
        length = _length(mine, target, unit)
        for (name, study), (points, values) in curves.items():
            if (baseline, study) not in curves:
                continue
            own, reached = curves[baseline, study]
            for share in shares:
                by_then = reached[own <= share * length]
                if not len(by_then):
                    continue
                start = crossing.first(own, reached, by_then[-1], lower=False)
                there = crossing.first(points, values, by_then[-1], lower=False)
                if not (start and there):  # the initial weights are as good: nothing is known of training
                    continue
                log = np.log((there if np.isfinite(there) else max(length, start)) / start)
                rows.append((str(workload), name, study, share, log, np.isinf(there)))
    return pd.DataFrame(rows, columns=["workload", "submission", "study", "share", "log", "missed"])


def table(found: pd.DataFrame) -> Leads:
    """Geometric means over studies of `pairs`, with their intervals (`intervals.each`).

    Returns:
        Rows (workload, submission); NaN where a run never gets there, or none of the baseline's has a value by then.
    """
    rows = found.assign(log=found["log"].where(~found["missed"].astype(bool)))
    parts: dict[str, dict[tuple[Any, ...], float]] = {"ratio": {}, "low": {}, "high": {}}
    for (name, share), here in rows.groupby(["submission", "share"]):
        logs = {str(workload): mine.to_numpy() for workload, mine in here.groupby("workload")["log"]}
        whole = {workload: values for workload, values in logs.items() if not np.isnan(values).any()}
        if whole:
            means = intervals.together([intervals.means(values) for values in whole.values()])
            for part, values in zip(parts.values(), (means.mean, *intervals.each(means))):
                part |= {(workload, name, share): value for workload, value in zip(whole, np.exp(values))}
        for part in parts.values():
            part |= {(workload, name, share): np.nan for workload in logs if workload not in whole}
    return Leads(**{name: _frame(part) for name, part in parts.items()})


def _frame(cells: dict[tuple[Any, ...], float]) -> pd.DataFrame:
    return pd.Series(cells, index=pd.MultiIndex.from_tuples(cells, names=[None] * 3), dtype=float).unstack()


def _length(runs: list[dict[str, np.ndarray]], target: pd.Series, unit: Unit) -> float:
    """Updates or seconds of the baseline's training."""
    ends = {name: np.array([run[name][-1] for run in runs if len(run[name])]) for name in ("steps", "seconds")}
    hint = target.get("step_hint")
    if hint is None or np.isnan(hint) or not len(ends[unit]):
        return float(ends[unit].max(initial=-np.inf))
    if unit == "steps":
        return float(hint)
    # Neither slow updates nor steps that are none (analysis/measures/pace.py) make training longer than is allowed.
    trained = ends["steps"] > 0  # of a run with an evaluation of its initial weights alone nothing is known
    if not trained.any():
        return float(target.get("budget_s", np.nan))
    pace = np.median(ends["seconds"][trained] / ends["steps"][trained])
    return float(np.fmin(hint * pace, target.get("budget_s", np.nan)))
