"""How much sooner a submission reaches the target than a baseline, with its uncertainty; GPU-hours for a whole suite.

A miss is a censored observation: it says only that the time to target is larger than what was run. Dropping misses
would flatter whoever misses often, and so would counting a run that diverged early by its short length. They are
restricted instead, as in the restricted mean survival time: on each workload the time to target T is replaced by
min(T, horizon) with one horizon for both submissions, the furthest that any of their runs went (in practice the
budget). The ratio then compares the time spent until target or horizon. It errs in a known direction, which the result
names: with misses of the submission alone the true ratio is larger (>=), of the baseline alone smaller (<=); with
misses of both it is undetermined (?).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.errors import UsageError
from analysis.targets import workload_property

REPLICATES = 4000


@dataclass(frozen=True)
class Speedup:
    """Ratios of a submission's time (or steps) to target to the baseline's; below 1 it is sooner.

    Attributes:
        workloads: per workload the ratio (geometric mean over studies), low and high (95 % over studies; NaN with a
            single one), pairs (0: unpaired), misses and baseline_misses (studies), bound ("", ">=", "<=" or "?").
        ratio: geometric mean over workloads.
        over_studies: 95 % interval with this suite of workloads given: studies are drawn again within each.
        over_workloads: 95 % interval for workloads like these: workloads are drawn again too, hence wider.
        bound: as above, over all workloads.
    """

    workloads: pd.DataFrame
    ratio: float
    over_studies: tuple[float, float]
    over_workloads: tuple[float, float]
    bound: str


def compare(best: pd.DataFrame, submission: str, baseline: str, unit: str = "seconds", seed: int = 0) -> Speedup:
    """Compare a submission with the baseline on the workloads that both ran.

    Studies are paired by the random seed where the runs' meta data say it, else by the study's number; a workload
    whose studies have nothing in common is compared unpaired. Intervals are percentiles of a bootstrap.

    Args:
        best: of `to_target.studies`: one row per submission, workload and study.
        unit: "seconds" or "steps".
        seed: of the bootstrap.

    Raises:
        UsageError: the two have no workload in common.
    """
    generator = np.random.default_rng(seed)
    rows, draws, names = [], [], []
    for workload, here in best.groupby("workload"):
        ours, theirs = (here[here["submission"] == name] for name in (submission, baseline))
        if ours.empty or theirs.empty:
            continue
        horizon = pd.concat([ours, theirs])[f"last_{unit}"].max()
        logs = [np.log(rows[unit].clip(upper=horizon)).set_axis(_key(rows)) for rows in (ours, theirs)]
        shared = logs[0].index.intersection(logs[1].index)
        if len(shared):
            difference = (logs[0][shared] - logs[1][shared]).to_numpy()
            drawn = _means(difference, generator)
            mean = difference.mean()
        else:
            one, two = (values.to_numpy() for values in logs)
            drawn = _means(one, generator) - _means(two, generator)
            mean = one.mean() - two.mean()
        few = len(shared) < 2 if len(shared) else min(map(len, logs)) < 2
        low, high = (np.nan, np.nan) if few else np.exp(np.percentile(drawn, [2.5, 97.5]))
        misses = [int(np.isinf(rows[unit]).sum()) for rows in (ours, theirs)]
        rows.append((np.exp(mean), low, high, len(shared), *misses, _bound(*misses)))
        draws.append(drawn)
        names.append(workload)
    if not rows:
        raise UsageError(f"{submission} and {baseline} have no workload in common")
    columns = ["ratio", "low", "high", "pairs", "misses", "baseline_misses", "bound"]
    table = pd.DataFrame(rows, columns=columns, index=pd.Index(names, name="workload"))
    drawn = np.array(draws)
    again = generator.integers(len(drawn), size=drawn.shape)
    return Speedup(
        workloads=table,
        ratio=float(np.exp(np.log(table["ratio"]).mean())),
        over_studies=_interval(drawn.mean(axis=0)) if table["low"].notna().any() else (np.nan, np.nan),
        over_workloads=_interval(np.take_along_axis(drawn, again, axis=0).mean(axis=0))
        if len(table) > 1
        else (np.nan, np.nan),
        bound=_bound(int(table["misses"].sum()), int(table["baseline_misses"].sum())),
    )


def gpu_hours(best: pd.DataFrame, targets: pd.DataFrame, gpus: int) -> pd.DataFrame:
    """GPU-hours to train every scored base workload to its target once, as in the paper's Table 1.

    Args:
        best: of `to_target.studies`.
        targets: of `targets.resolve`.
        gpus: of the machine that made the logs.

    Returns:
        Per submission: hours (sum over workloads of the mean over studies of the time to target, a miss counted with
        the budget, or with the longest run where the version has none, times `gpus`), misses (studies), studies, and
        missing (workloads without a run, not in the sum). With a miss `hours` is a lower bound.
    """
    scored = targets[targets["variant_of"].isna() & targets["scored"]]
    rows = best[best["workload"].isin(scored.index)]
    longest = rows.groupby("workload")["last_seconds"].max()
    budget = scored["max_runtime_s"].astype(float).fillna(longest)
    missed = np.isinf(rows["seconds"])
    spent = rows["seconds"].where(~missed, rows["workload"].map(budget))
    per_workload = spent.groupby([rows["submission"], rows["workload"]]).mean()
    by_submission = per_workload.groupby("submission")
    return pd.DataFrame(
        {
            "hours": by_submission.sum() * gpus / 3600,
            "misses": missed.groupby(rows["submission"]).sum(),
            "studies": rows.groupby("submission").size(),
            "missing": len(scored) - by_submission.size(),
        }
    )


def _key(rows: pd.DataFrame) -> pd.Index:
    """The seeds if every run says its own, else the numbers of the studies."""
    seeds = [meta.get("rng_seed", workload_property(meta, "rng_seed")) for meta in rows["meta"]]
    return pd.Index(seeds if None not in seeds and len(set(seeds)) == len(seeds) else rows["study"])


def _means(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Means of `values` drawn again with replacement."""
    return values[generator.integers(len(values), size=(REPLICATES, len(values)))].mean(axis=1)


def _interval(logs: np.ndarray) -> tuple[float, float]:
    low, high = np.exp(np.percentile(logs, [2.5, 97.5]))
    return float(low), float(high)


def _bound(misses: int, baseline_misses: int) -> str:
    return {(False, False): "", (True, False): ">=", (False, True): "<="}.get((misses > 0, baseline_misses > 0), "?")
