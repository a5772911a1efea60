"""Whether the steps of logs are updates.

The two averaging submissions of 2024 counted calls, each of many updates: 213 s a "step" where the baseline takes 0.36.
Such steps cannot be compared with anything.
"""

import numpy as np
import pandas as pd

from analysis.reading.logs import Logs

TOO_SLOW = (
    20.0  # published runs are up to 10 times slower than budget and step hint say, the two of 2024 40 to 640 times
)


def seconds_per_step(logs: Logs) -> pd.Series:
    """Of each run, between its first evaluation (before which programs are compiled) and its last; NaN of a single
    one."""
    by_run = logs.evaluations.groupby("run")[["score", "global_step"]]
    passed = by_run.last() - by_run.first()
    return (passed["score"] / passed["global_step"].replace(0, np.nan)).reindex(logs.runs.index)


def odd(logs: Logs, targets: pd.DataFrame) -> pd.DataFrame:
    """The submissions and workloads whose steps cannot be updates.

    Their time per step, in the median over runs, is more than `TOO_SLOW` times what it should be. That is the budget
    over the step hint where the benchmark says them, else the time of the fastest submission.

    Returns:
        Rows (submission, workload), columns seconds_per_step and expected.
    """
    median = seconds_per_step(logs).groupby([logs.runs["submission"], logs.runs["workload"]]).median().dropna()
    workload = median.index.get_level_values("workload")
    official = targets["budget_s"] / targets["step_hint"].astype(float)
    expected = official.fillna(median.groupby("workload").min()).reindex(workload)
    table = pd.DataFrame({"seconds_per_step": median, "expected": expected.to_numpy()})
    return table[table["seconds_per_step"] > TOO_SLOW * table["expected"]]


def without(trials: pd.DataFrame, odd: pd.DataFrame) -> pd.DataFrame:
    """`Measured.trials` with NaN for all steps of submissions that have such."""
    strange = trials["submission"].isin(odd.index.get_level_values("submission"))
    columns = ["steps", "last_steps", "crossed_steps"]
    return trials.assign(**{name: trials[name].astype(float).mask(strange) for name in columns})


def notes(odd: pd.DataFrame) -> list[str]:
    """One line per submission."""
    lines = []
    for name, rows in odd.groupby(level="submission"):
        worst = int((rows["seconds_per_step"] / rows["expected"]).argmax())
        pace, expected = rows.iloc[worst]
        lines.append(
            f"the steps of {name} cannot be updates (on {len(rows)} workload{'s' * (len(rows) > 1)}; "
            f"{rows.index[worst][1]}: {pace:.3g} s a step, where {expected:.2g} s is usual): they are not shown"
        )
    return lines
