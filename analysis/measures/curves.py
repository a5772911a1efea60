"""Learning curves of several runs: their band, and the part of it that tells something."""

from typing import Literal

import numpy as np
import pandas as pd

Unit = Literal["steps", "seconds"]


def band(runs: list[pd.DataFrame], unit: Unit) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The points (updates or seconds) of the runs, and there mean, lowest and highest of their curves.

    Curves are interpolated where their points differ, as those of runs evaluated by wall time do. The band goes on as
    long as half of the runs have values: published runs end at the target, and some diverge.
    """
    runs = [rows for rows in runs if len(rows)]
    if not runs:
        return (np.array([]),) * 4
    points = np.unique(np.concatenate([rows[unit] for rows in runs]))
    curves = [np.interp(points, rows[unit], rows["value"], left=np.nan, right=np.nan) for rows in runs]
    there = 2 * np.isfinite(curves).sum(axis=0) >= len(runs)
    values = np.array(curves)[:, there]
    return points[there], np.nanmean(values, axis=0), np.nanmin(values, axis=0), np.nanmax(values, axis=0)


def interesting_range(
    best: pd.DataFrame, of_runs: dict[str, pd.DataFrame], lower: bool, target: float
) -> tuple[float, float]:
    """Limits of a vertical axis: from a little beyond the best value to what is left after a sixth of training.

    The far end leaves out the worst quarter of the submissions, so that one that diverged does not flatten the others.
    It is no further from the target than half way to zero. So the target's neighbourhood can be seen, whatever the
    start.

    Args:
        best: rows of `to_target.studies` of one workload.
        of_runs: of `Measured.curves`.
    """
    bests, edges = [], []
    for _, folders in best.groupby("submission")["folder"]:
        late = pd.concat([of_runs[folder]["value"].iloc[max(1, len(of_runs[folder]) // 6) :] for folder in folders])
        late = late[np.isfinite(late)]
        if len(late):
            bests.append(late.min() if lower else late.max())
            edges.append(late.quantile(0.97 if lower else 0.03))
    reach = [target]
    if edges:
        edge = sorted(edges, reverse=lower)[len(edges) // 4]
        if target:
            edge = float(np.clip(edge, target - abs(target) / 2, target + abs(target) / 2))
        reach += [min(bests) if lower else max(bests), edge]
    low, high = min(reach), max(reach)
    margin = 0.06 * (high - low) or 0.01 * abs(target) or 0.01
    return low - margin, high + margin
