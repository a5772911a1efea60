"""How far ahead a submission is along the way, not at one target only."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis import tables, to_target
from analysis.logs import Logs

SHARES = (0.3, 0.5, 0.7, 0.9)


def table(logs: Logs, targets: pd.DataFrame, baseline: str, shares: Sequence[float] = SHARES) -> pd.DataFrame:
    """Updates to the best value that the baseline has reached by a share of its training, over the baseline's own.

    Curves are means over runs at the steps that all of them have evaluated. A single target asks who is first at one
    level; this asks at several, each named by when the baseline gets there.

    Returns:
        Rows (workload, submission), columns the shares; NaN where the submission never gets there.
    """
    names = logs.runs[["submission", "workload"]]
    rows = logs.evaluations[["run", "global_step"]].assign(value=to_target.values(logs, targets))
    rows = rows.join(names, on="run")
    rows["value"] *= np.where(rows["workload"].map(targets["lower"]), -1.0, 1.0)  # higher is better from here on
    grouped = rows.groupby(["workload", "submission", "global_step"])["value"]
    runs = names.value_counts()
    mean, count = grouped.mean(), grouped.size()
    complete = [count[key] == runs[key[1], key[0]] for key in mean.index]
    best = mean[complete].groupby(["workload", "submission"]).cummax()
    result = {}
    for workload, curves in best.groupby("workload"):
        by_name = {name: curve.droplevel([0, 1]) for name, curve in curves.groupby("submission")}
        if baseline not in by_name:
            continue
        reference = by_name[baseline]
        for share in shares:
            level = reference[reference.index <= share * reference.index[-1]].iloc[-1]
            for name, curve in by_name.items():
                hits, own = curve.index[curve >= level], reference.index[reference >= level]
                result[workload, name, share] = hits[0] / own[0] if len(hits) else np.nan
    return pd.Series(result).unstack()


def format_table(leads: pd.DataFrame, baseline: str) -> str:
    """Text of the table of `table`, without the baseline's own rows of ones."""
    shown = leads[leads.index.get_level_values(1) != baseline]
    cells = shown.map(lambda ratio: tables.number(ratio, ".2f"))
    cells.columns = pd.Index([f"{share:.0%} of training" for share in cells.columns])
    return tables.markdown(cells.rename_axis(["workload", "submission"]).reset_index())
