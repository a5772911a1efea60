"""Steps and time to the validation target."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.logs import LOWER_IS_BETTER, Run


def reached_at(run: Run, metric: str, target: float) -> pd.Series | None:
    """The first evaluation whose validation metric reaches the target, or None. NaN reaches nothing."""
    values = run.evaluations[f"validation/{metric}"]
    hits = run.evaluations[values <= target if metric in LOWER_IS_BETTER else values >= target]
    return None if hits.empty else hits.iloc[0]


def table(runs: Sequence[Run], baseline: str) -> pd.DataFrame:
    """One row per workload and submission: steps and seconds to target over runs, and their ratio to the baseline.

    Means are over the runs that reached the target; `reached` counts them, and the ratio is left empty unless all
    runs of both did, since a mean over the lucky ones would flatter. `best` is the mean over runs of the best
    validation metric, whenever it occurred, and `final` of the last.

    Raises:
        ValueError: the baseline has no run, or a run does not say its metric and target.
    """
    if not any(run.submission == baseline for run in runs):
        there = ", ".join(sorted({run.submission for run in runs}))
        raise ValueError(f"no run of the baseline {baseline!r}; there are {there}")
    rows = []
    for run in runs:
        if run.metric is None or run.target is None:
            raise ValueError(f"{run.folder}: meta_data_*.json does not say the target metric and its validation target")
        hit = reached_at(run, run.metric, run.target)
        values = run.evaluations[f"validation/{run.metric}"]
        rows.append(
            {
                "workload": run.workload,
                "submission": run.submission,
                "steps": hit["global_step"] if hit is not None else np.nan,
                "seconds": hit["score"] if hit is not None else np.nan,
                "best": values.min() if run.metric in LOWER_IS_BETTER else values.max(),
                "final": values.iloc[-1],
            }
        )
    groups = pd.DataFrame(rows).groupby(["workload", "submission"])
    result = groups.agg(
        runs=("best", "size"),
        reached=("steps", "count"),
        steps=("steps", "mean"),
        steps_std=("steps", "std"),
        seconds=("seconds", "mean"),
        best=("best", "mean"),
        final=("final", "mean"),
    )
    complete = result["steps"].where(result["reached"] == result["runs"])
    reference = complete.xs(baseline, level="submission").reindex(result.index.get_level_values("workload"))
    result["ratio"] = complete / reference.to_numpy()
    return result.reset_index()


def format_table(result: pd.DataFrame, baseline: str) -> str:
    """The table as aligned text, also valid Markdown."""
    shown = pd.DataFrame(
        {
            "workload": result["workload"],
            "submission": result["submission"],
            "reached": [f"{a}/{b}" for a, b in zip(result["reached"], result["runs"], strict=True)],
            "steps to target": [_spread(m, s) for m, s in zip(result["steps"], result["steps_std"], strict=True)],
            "seconds": [_number(x, ".1f") for x in result["seconds"]],
            f"steps / {baseline}": [_number(x, ".2f") for x in result["ratio"]],
            "best": [_number(x, ".4f") for x in result["best"]],
            "final": [_number(x, ".4f") for x in result["final"]],
        }
    )
    widths = [max(len(str(x)) for x in [name, *shown[name]]) for name in shown]
    lines = [[str(name) for name in shown], ["-" * w for w in widths], *shown.astype(str).to_numpy().tolist()]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)


def _number(value: float, form: str) -> str:
    return "-" if np.isnan(value) else f"{value:{form}}"


def _spread(mean: float, std: float) -> str:
    if np.isnan(mean):
        return "-"
    return f"{mean:.0f}" if np.isnan(std) else f"{mean:.0f} ± {std:.0f}"
