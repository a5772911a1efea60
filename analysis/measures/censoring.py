"""What a missed target counts with: one definition for ratios and GPU-hours.

A miss is a censored observation: it says only that the time to target is larger than what was run. Dropping misses
would flatter whoever misses often, and so would counting a run that diverged early by its short length. A miss counts
with the whole budget of the workload instead, which the ruleset sets (self-tuning: a multiple). The restricted mean
survival time and the official compute_speedups do so too. A workload that a submission never ran is missed in every
study.
"""

import numpy as np
import pandas as pd

from analysis.targets.resolve import base


def budgets(best: pd.DataFrame, targets: pd.DataFrame, unit: str) -> pd.Series:
    """Per workload that anyone ran and that counts, what a miss counts with, in seconds or steps.

    In seconds it is the budget, or, where runs end by steps, the furthest run of all submissions. In steps it is the
    step hint or the furthest run, whichever is more.

    Args:
        best: of `to_target.studies`.
        targets: of `targets.resolve`.
        unit: "seconds" or "steps".
    """
    furthest = best.groupby("workload")[f"last_{unit}"].max()
    known = targets["budget_s"] if unit == "seconds" else targets["step_hint"].astype(float)
    known = known.reindex(furthest.index)
    whole = known.fillna(furthest) if unit == "seconds" else furthest.combine(known, np.fmax)
    return whole[whole.index.isin(base(targets).index)]


def times(best: pd.DataFrame, budget: pd.Series, unit: str) -> pd.DataFrame:
    """One row per submission, workload of `budget` and study: time (a miss with the budget), missed, and meta.

    A submission without a run of a workload has rows with the numbers of the studies that the others have there.
    """
    rows = best[best["workload"].isin(budget.index)]
    missed = ~rows["reached"]
    time = rows[unit].where(~missed, rows["workload"].map(budget))
    there = rows[["submission", "workload", "study", "meta"]].assign(time=time, missed=missed)
    studies = rows.groupby("workload")["study"].unique()
    ran = set(zip(rows["submission"], rows["workload"]))
    absent = [
        {"submission": name, "workload": workload, "study": study, "meta": {}, "time": budget[workload], "missed": True}
        for name in best["submission"].unique()
        for workload in budget.index
        if (name, workload) not in ran
        for study in studies[workload]
    ]
    return pd.concat([there, pd.DataFrame(absent, columns=there.columns)], ignore_index=True) if absent else there
