"""GPU-hours for a whole suite of workloads."""

import math

import pandas as pd

from analysis.measures import censoring


def gpu_hours(best: pd.DataFrame, targets: pd.DataFrame, gpus: int) -> pd.DataFrame:
    """GPU-hours to train every scored base workload that anyone ran to its target once, as in the paper's Table 1.

    Args:
        best: of `to_target.studies`.
        targets: of `targets.resolve`.
        gpus: of the machine that made the logs.

    Returns:
        Per submission: hours (sum over workloads of the mean over studies of the time to target, a miss counted with
        the budget, see `analysis.measures.censoring`, times `gpus`), misses and studies (those without a run too), and
        missing (workloads without a run). With a miss `hours` is a lower bound.
    """
    budget = censoring.budgets(best, targets, "seconds")
    rows = censoring.times(best, budget, "seconds")
    mean = rows.groupby(["submission", "workload"])["time"].mean()
    ran = best[best["workload"].isin(budget.index)].groupby("submission")["workload"].nunique()
    by_submission = rows.groupby("submission")
    table = pd.DataFrame(
        {
            "hours": mean.groupby("submission").sum() * gpus / 3600,
            "misses": by_submission["missed"].sum(),
            "studies": by_submission.size(),
        }
    )
    # Where no workload that counts was run, nothing is known of the hours.
    table = table.reindex(sorted(best["submission"].unique())).fillna({"misses": 0, "studies": 0})
    return table.assign(missing=len(budget) - ran.reindex(table.index, fill_value=0)).astype(
        {"misses": int, "studies": int}
    )


def heading(table: pd.DataFrame, gpus: int) -> str:
    """The name of what `shown` shows: GPU-hours where there is more than one GPU; of short runs seconds."""
    if gpus > 1:
        return f"GPU-hours ({gpus} GPUs)"
    return "seconds to all targets" if _is_short(table) else "hours to all targets"


def shown(table: pd.DataFrame) -> dict[str, str]:
    """The hours of each submission of the table of `gpu_hours`, as a lower bound where there are misses; seconds if all
    are short."""
    unit, form = (3600.0, ".0f") if _is_short(table) else (1.0, ".3g")
    return {
        str(name): "-" if math.isnan(spent) else f"{'>= ' if missed else ''}{unit * spent:{form}}"
        for name, spent, missed in zip(table.index, table["hours"], table["misses"])
    }


def _is_short(table: pd.DataFrame) -> bool:
    return bool(table["hours"].max() < 0.1)
