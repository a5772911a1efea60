"""The tables of the scripts, as text that is also valid Markdown."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.measures import gpu_hours, intervals, speedup
from analysis.measures.lead import Leads
from analysis.measures.results import Results
from analysis.measures.speedup import Speedup
from analysis.text import markdown, number


def by_submission(trials: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """One row per workload and submission: steps and seconds to target over runs, and the ratio of steps to the
    baseline's.

    The ratio is the geometric mean over pairs of runs, as in `speedup.compare`.

    Means are over the runs that reached the target, which `reached` counts. The ratio is left empty unless all runs of
    both did, since a mean over the lucky ones would flatter. `best` is the mean over runs of the best validation
    metric, whenever it occurred, and `final` of the last. Where one run has none both are NaN.
    """
    finite = trials.assign(**{unit: trials[unit].replace(np.inf, np.nan) for unit in ("steps", "seconds")})
    result = finite.groupby(["workload", "submission"]).agg(
        runs=("reached", "size"),
        reached=("reached", "sum"),
        steps=("steps", "mean"),
        steps_std=("steps", "std"),
        seconds=("seconds", "mean"),
        best=("best", _mean_of_all),
        final=("final", _mean_of_all),
    )
    logs = trials.assign(log=np.log(trials["steps"].astype(float)))
    sides = dict(iter(logs.groupby(["workload", "submission"])))
    result["ratio"] = [_ratio(mine, sides.get((key[0], baseline))) for key, mine in sides.items()]
    return result.reset_index()


def _mean_of_all(values: pd.Series) -> float:
    return float(values.mean(skipna=False))


def _ratio(ours: pd.DataFrame, theirs: pd.DataFrame | None) -> float:
    """Of steps, from the column log; NaN where a run missed or there is no baseline."""
    if theirs is None or np.isinf([*ours["log"], *theirs["log"]]).any():
        return np.nan
    pairs = speedup.paired(ours, theirs, "log")
    return float(np.exp(pairs.mean() if len(pairs) else ours["log"].mean() - theirs["log"].mean()))


def format_by_submission(result: pd.DataFrame, baseline: str) -> str:
    """Text of the table of `by_submission`."""
    shown = pd.DataFrame(
        {
            "workload": result["workload"],
            "submission": result["submission"],
            "reached": [f"{a}/{b}" for a, b in zip(result["reached"], result["runs"])],
            "steps to target": [_spread(m, s) for m, s in zip(result["steps"], result["steps_std"])],
            "seconds": [number(x, ".1f") for x in result["seconds"]],
            f"steps / {baseline}": [number(x, ".2f") for x in result["ratio"]],
            "best": [number(x, ".4f") for x in result["best"]],
            "final": [number(x, ".4f") for x in result["final"]],
        }
    )
    return markdown(shown)


def ranking(found: Results) -> pd.DataFrame:
    """One row per submission, the best score first: rank, score, targets reached, hours, and the ratio of time (or
    steps) to target to the baseline's. With hypothetical entries also the score without them."""
    names, hours = found.scores.index, gpu_hours.shown(found.hours)
    columns = {
        "rank": [found.ranks[name] for name in names],
        "submission": names,
        "score": [f"{score:.4f}" for score in found.scores],
        "targets reached": [found.reached[name] for name in names],
        gpu_hours.heading(found.hours, found.gpus): [hours[name] for name in names],
    }
    if len(found.real_scores) < len(found.scores):
        real = found.real_scores.reindex(names)
        columns["score without the hypothetical"] = [number(score, ".4f") for score in real]
    return pd.DataFrame(columns)


def format_times(times: pd.DataFrame, names: Sequence[str]) -> str:
    """Text of a table of median times to target: one row per workload, one column per submission, those in order."""
    shown = times.T[list(names)].map(lambda value: number(value, ".0f")).reset_index(names="workload")
    return markdown(shown)


def format_speedups(results: dict[str, Speedup], baseline: str, unit: str = "time") -> str:
    """Text of the ratios over all workloads."""
    shown = pd.DataFrame(
        {
            "submission": list(results),
            f"{unit} / {baseline}": [speedup.shown(r) for r in results.values()],
            "official code": [number(r.official, ".3f") for r in results.values()],
            "95 %, over studies": [speedup.interval(*r.over_studies, r.bound) for r in results.values()],
            "says": [intervals.verdict(*r.over_studies, r.bound) for r in results.values()],
            "95 %, over workloads": [speedup.interval(*r.over_workloads, r.bound) for r in results.values()],
            "workloads": [len(r.workloads) for r in results.values()],
            "misses": [r.workloads["misses"].sum() for r in results.values()],
            f"misses of {baseline}": [r.workloads["baseline_misses"].sum() for r in results.values()],
        }
    )
    return markdown(shown)


def format_leads(leads: Leads, baseline: str) -> str:
    """Text of `lead.table`, without the baseline's own rows of ones."""
    shown = leads.shown()
    shown = shown[shown.index.get_level_values(1) != baseline]
    return markdown(shown.rename_axis(["workload", "submission"]).reset_index())


def _spread(mean: float, std: float) -> str:
    if np.isnan(mean):
        return "-"
    return f"{mean:.0f}" if np.isnan(std) else f"{mean:.0f} ± {std:.0f}"
