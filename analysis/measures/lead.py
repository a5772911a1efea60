"""How far ahead a submission is along the way, not at one target only."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.measures.curves import Unit

SHARES = (0.3, 0.5, 0.7, 0.9)


def table(
    runs: pd.DataFrame,
    of_runs: dict[str, pd.DataFrame],
    targets: pd.DataFrame,
    baseline: str,
    unit: Unit = "steps",
    shares: Sequence[float] = SHARES,
) -> pd.DataFrame:
    """Updates, or seconds, to the best value that the baseline has reached by a share of its training, over the
    baseline's own.

    A single target asks who is first at one level; this asks at several, each named by when the baseline gets there.
    Training is the step hint's updates, or the time in which the baseline's median run makes them, at most the budget.
    Curves are means over runs, interpolated where their evaluations differ; the best so far is carried on, also beyond
    the end of a run that reached the target or broke off.

    Args:
        runs: those that count, of `Logs.runs`.
        of_runs: of `Measured.curves`.
        targets: of `targets.resolve`.

    Returns:
        Rows (workload, submission), columns the shares; NaN where the submission never gets there, or where the
        baseline had no evaluation by then.
    """
    result = {}
    for workload, target in targets.iterrows():
        here = runs[runs["workload"] == workload]
        sign = -1.0 if target["lower"] else 1.0
        by_submission = here.groupby("submission")["folder"]
        groups = {str(name): [of_runs[folder] for folder in folders] for name, folders in by_submission}
        if baseline not in groups:
            continue
        means = {name: _mean(several, unit, sign) for name, several in groups.items()}
        length = _length(groups[baseline], target, unit)
        points, values = means[baseline]
        for share in shares:
            by_then = values[points <= share * length]
            level = by_then[-1] if len(by_then) else -np.inf
            own = _first(means[baseline], level)
            for name, mean in means.items():
                result[workload, name, share] = _first(mean, level) / own if np.isfinite(level) else np.nan
    return pd.Series(result, index=pd.MultiIndex.from_tuples(result, names=[None] * 3), dtype=float).unstack()


def _mean(runs: list[pd.DataFrame], unit: Unit, sign: float) -> tuple[np.ndarray, np.ndarray]:
    """All points of the runs, and there the best so far of their mean curve, times `sign`: higher is better. Before its
    first evaluation a run has nothing."""
    points = np.unique(np.concatenate([rows[unit] for rows in runs]))
    values = [
        np.interp(points, rows[unit], sign * rows["value"], left=-np.inf, right=(sign * rows["value"]).max())
        if len(rows)
        else np.full(len(points), -np.inf)
        for rows in runs
    ]
    return points, np.maximum.accumulate(np.mean(values, axis=0)) if len(points) else points


def _length(runs: list[pd.DataFrame], target: pd.Series, unit: Unit) -> float:
    """Updates or seconds of the baseline's training."""
    ends = pd.DataFrame([rows.iloc[-1] for rows in runs if len(rows)])
    hint = target.get("step_hint")
    if hint is None or np.isnan(hint) or ends.empty:
        return float(ends[unit].max()) if len(ends) else np.nan
    if unit == "steps":
        return float(hint)
    # Neither slow updates nor steps that are none (analysis/measures/pace.py) make training longer than is allowed.
    return float(np.fmin(hint * (ends["seconds"] / ends["steps"]).median(), target.get("budget_s", np.nan)))


def _first(mean: tuple[np.ndarray, np.ndarray], level: float) -> float:
    hits = mean[0][mean[1] >= level]
    return float(hits[0]) if len(hits) else np.nan
