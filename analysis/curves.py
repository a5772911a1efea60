"""Learning curves: of each run, and the band over several."""

from typing import Literal

import numpy as np
import pandas as pd

from analysis import to_target
from analysis.logs import Logs

Unit = Literal["steps", "seconds"]


def by_folder(logs: Logs, targets: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """For each run, by its folder: steps, seconds and value (the validation metric), one row per evaluation that has a
    value."""
    rows = logs.evaluations[["run", "global_step", "score"]].assign(value=to_target.values(logs, targets))
    rows = rows.rename(columns={"global_step": "steps", "score": "seconds"}).dropna(subset="value")
    groups = dict(iter(rows.groupby("run")))
    return {folder: groups.get(run, rows.iloc[:0]) for run, folder in enumerate(logs.runs["folder"])}


def band(runs: list[pd.DataFrame], unit: Unit) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The points (updates or seconds) that the runs share, and there mean, lowest and highest of their curves.

    Curves are interpolated where their points differ, as those of runs evaluated by wall time do. A run that has values
    for less than half as long as the longest, because it diverged or was cut, is left out: the band would end with it.
    """
    length = max((rows[unit].iloc[-1] for rows in runs if len(rows)), default=0.0)
    runs = [rows for rows in runs if len(rows) and rows[unit].iloc[-1] >= length / 2]
    if not runs:
        return (np.array([]),) * 4
    start, end = max(rows[unit].iloc[0] for rows in runs), min(rows[unit].iloc[-1] for rows in runs)
    points = np.unique(np.concatenate([rows[unit] for rows in runs]))
    points = points[(points >= start) & (points <= end)]
    values = np.array([np.interp(points, rows[unit], rows["value"]) for rows in runs])
    return points, values.mean(axis=0), values.min(axis=0), values.max(axis=0)
