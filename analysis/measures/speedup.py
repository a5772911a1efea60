"""How much sooner a submission reaches the target than a baseline, with its uncertainty.

A miss counts with the budget (`analysis.measures.censoring`). The ratio then compares the time spent until target or
budget. With misses it is only a bound, which the result names. It is `>=` if only the submission missed targets, `<=`
if only the baseline did, `?` if both did.

An interval is that of the time until target or budget. For the time to target one end of it holds where one side
misses: the lower with >=, the upper with <=. Neither holds where both miss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.measures import censoring, intervals
from analysis.measures.intervals import Interval
from analysis.reading.meta import workload_property


@dataclass(frozen=True)
class Speedup:
    """Ratios of a submission's time (or steps) to target to the baseline's; below 1 it is sooner.

    Attributes:
        workloads: per workload the ratio (geometric mean over studies), low and high (`intervals.each`; NaN where no
            workload has two studies), pairs (0: unpaired), misses and baseline_misses (studies), bound ("", ">=", "<="
            or "?").
        ratio: geometric mean over workloads.
        over_studies: 95 % interval for other studies of this suite of workloads (`intervals.suite`).
        over_workloads: 95 % interval for workloads like these, each a number (`intervals.student`).
        bound: as above, over all workloads.
        official: what the official compute_speedups makes of it; NaN where it would, for a workload without a run.
    """

    workloads: pd.DataFrame
    ratio: float
    over_studies: tuple[float, float]
    over_workloads: tuple[float, float]
    bound: str
    official: float


class _Side(NamedTuple):
    """A submission on a workload: its rows, one a study, with the logarithms of its times, and how many are misses."""

    rows: pd.DataFrame
    misses: int


def compare(
    best: pd.DataFrame,
    times: pd.DataFrame,
    targets: pd.DataFrame,
    submissions: Sequence[str],
    baseline: str,
    unit: str = "seconds",
) -> dict[str, Speedup]:
    """Compare submissions with the baseline on the scored base workloads that one of the two ran.

    Studies are paired by the random seed where the runs' meta data say it, else by the study's number. A workload whose
    studies have nothing in common is compared unpaired.

    Args:
        best: of `to_target.studies`, of all submissions: the furthest run may be anyone's.
        times: of `to_target.submissions`, in `unit`.
        targets: of `targets.resolve`.
        unit: "seconds" or "steps".

    Returns:
        By name, without submissions that have no workload in common with the baseline, or none of whose runs count, and
        without those of which, as of the baseline, no run reached a target: their ratio would be that of two budgets.
    """
    budget = censoring.budgets(best, targets, unit)
    rows = censoring.times(best, budget, unit)
    rows = rows.assign(log=np.log(rows["time"]))
    sides = {key: _Side(mine, int(mine["missed"].sum())) for key, mine in rows.groupby(["submission", "workload"])}
    ran = best[best["workload"].isin(budget.index)].groupby("submission")["workload"].agg(set)
    found = {}
    for name in submissions:
        both = ran.get(name, set()), ran.get(baseline, set())
        if both[0] & both[1]:
            pairs = {w: (sides[name, w], sides[baseline, w]) for w in sorted(both[0] | both[1])}
            if any(side.misses < len(side.rows) for pair in pairs.values() for side in pair):
                found[name] = _speedup(pairs, official(times, budget, name, baseline))
    return found


def shown(result: Speedup) -> str:
    """The ratio with its bound."""
    return f"{result.bound} {result.ratio:.3f}".strip()


def interval(low: float, high: float, bound: str) -> str:
    """A 95 % interval as text: the ends that hold for the time to target.

    After a "?" the ends are those of the time until target or budget.
    """
    if np.isnan(low):
        return "-"
    return {">=": f">= {low:.2f}", "<=": f"<= {high:.2f}", "?": f"? {low:.2f} to {high:.2f}"}.get(
        bound, f"{low:.2f} to {high:.2f}"
    )


def rows(results: dict[str, Speedup]) -> pd.DataFrame:
    """One row per submission and workload, and one over all (workload `all`), each with what its interval says."""
    tables = []
    for submission, result in results.items():
        low, high = result.over_studies
        widest = dict(zip(("low_over_workloads", "high_over_workloads"), result.over_workloads))
        whole = {"workload": "all", "ratio": result.ratio, "low": low, "high": high, "bound": result.bound, **widest}
        whole |= {name: result.workloads[name].sum() for name in ("pairs", "misses", "baseline_misses")}
        whole["official"] = result.official
        tables += [result.workloads.reset_index(), pd.DataFrame([whole])]
        for table in tables[-2:]:
            table.insert(0, "submission", submission)
            for name in ("", "_over_workloads"):
                if f"low{name}" in table:
                    ends = zip(table[f"low{name}"], table[f"high{name}"], table["bound"])
                    table[f"verdict{name}"] = [intervals.verdict(*end) for end in ends]
    return pd.concat(tables, ignore_index=True)


def _speedup(pairs: dict[str, tuple[_Side, _Side]], official: float) -> Speedup:
    """From ours and theirs on each workload."""
    measured, found = [], []
    for ours, theirs in pairs.values():
        differences = paired(ours.rows, theirs.rows, "log")
        single = intervals.means(ours.rows["log"].to_numpy()), intervals.means(theirs.rows["log"].to_numpy())
        found.append(intervals.means(differences) if len(differences) else intervals.difference(*single))
        misses = ours.misses, theirs.misses
        measured.append((len(differences), *misses, _bound(*misses)))
    columns = ["pairs", "misses", "baseline_misses", "bound"]
    table = pd.DataFrame(measured, columns=columns, index=pd.Index(list(pairs), name="workload"))
    means = intervals.together(found)
    low, high = intervals.each(means)
    for place, (name, logs) in enumerate({"ratio": means.mean, "low": low, "high": high}.items()):
        table.insert(place, name, np.exp(logs))
    return Speedup(
        workloads=table,
        ratio=float(np.exp(means.mean.mean())),
        over_studies=_ratios(intervals.suite(means)),
        over_workloads=_ratios(intervals.student(means.mean)),
        bound=_bound(int(table["misses"].sum()), int(table["baseline_misses"].sum())),
        official=official,
    )


def official(times: pd.DataFrame, budget: pd.Series, submission: str, baseline: str) -> float:
    """The ratio as the official compute_speedups takes it: of medians over studies, geometric mean over all workloads.

    A missed median counts with the budget and one second. The ratio is NaN where either has no run of a workload.
    """
    medians = times.reindex(columns=budget.index).loc[[submission, baseline]].to_numpy()
    ours, theirs = np.where(np.isinf(medians), budget.to_numpy() + 1, medians)
    return float(np.exp(np.log(ours / theirs).mean()))


def paired(ours: pd.DataFrame, theirs: pd.DataFrame, column: str) -> np.ndarray:
    """What the column of ours is larger by than that of theirs, of each pair; empty if no run has its like.

    Pairs are of one random seed, if every run of both sides says its own, else of one study's number.
    """
    seeds = [_seeds(rows) for rows in (ours, theirs)]
    keys: list[Any] = seeds if all(seeds) else [ours["study"], theirs["study"]]
    mine, other = (pd.Series(rows[column].to_numpy(float), index=key) for rows, key in zip((ours, theirs), keys))
    shared = mine.index.intersection(other.index)
    return (mine[shared] - other[shared]).to_numpy()


def _seeds(rows: pd.DataFrame) -> list[Any]:
    """Those of the runs; none unless each says one of its own."""
    seeds = [meta.get("rng_seed", workload_property(meta, "rng_seed")) for meta in rows["meta"]]
    numbers = [seed for seed in seeds if isinstance(seed, int | float | str)]
    return numbers if len(set(numbers)) == len(seeds) else []


def _ratios(logs: Interval) -> tuple[float, float]:
    return float(np.exp(logs.low)), float(np.exp(logs.high))


def _bound(misses: int, baseline_misses: int) -> str:
    return {(False, False): "", (True, False): ">=", (False, True): "<="}.get((misses > 0, baseline_misses > 0), "?")
