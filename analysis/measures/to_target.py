"""Steps and time to the validation target: per trial, per study, per submission."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd

from analysis.measures import crossing
from analysis.reading.logs import Logs
from weight_averaging.errors import UsageError

Rule = Literal["fewest_evaluations", "fastest"]
STUDY = ["submission", "workload", "study"]


@dataclass(frozen=True)
class Measured:
    """Runs and what they reached: worked out once from logs and targets, when asked for, and handed down.

    Attributes:
        logs: the runs.
        targets: of `targets.resolve`, with a row for each of their workloads.
        median_of: evaluations in the running median of which crossings are read (`crossing.smooth`).
    """

    logs: Logs
    targets: pd.DataFrame
    median_of: int = crossing.MEDIAN_OF

    @cached_property
    def values(self) -> pd.Series:
        """The validation metric that decides, a value per evaluation; NaN (reaches nothing) where it is not finite."""
        workload = self.logs.evaluations["run"].map(self.logs.runs["workload"])
        result = pd.Series(np.nan, index=self.logs.evaluations.index)
        for metric, names in self.targets.groupby("metric").groups.items():
            mine = workload.isin(names)
            result[mine] = self.logs.evaluations.loc[mine, f"validation/{metric}"]
        return result.where(np.isfinite(result))

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row per run: where it reached the target and how far it went.

        It is `logs.runs` with further columns:

        - reached (bool), and evaluations, the number of them before the one that reached the target;
        - steps and seconds at that evaluation, inf if missed; last_steps and last_seconds, at the end;
        - crossed_steps and crossed_seconds, where the running median of the evaluations crosses the target,
          interpolated; inf if never;
        - best, the best validation metric, whenever it occurred; final, the last one, NaN where that is not finite;
          count, evaluations in all;
        - shortfall, from best to the target, in the metric's unit; negative once passed.

        UsageError if the initial weights reach a target: there is no time to it, and no ratio of times.
        """
        runs, value = self.logs.runs, self.values
        lower_is_better = runs["workload"].map(self.targets["lower"])
        target = runs["workload"].map(self.targets["target"])
        rows = self.logs.evaluations[["run", "global_step", "score"]].assign(value=value)
        rows["position"] = rows.groupby("run").cumcount()
        lower, level = rows["run"].map(lower_is_better), rows["run"].map(target)
        hits = rows[np.where(lower, value <= level, value >= level)].groupby("run").first()
        hits = hits.reindex(runs.index)
        if (at_once := hits["global_step"] <= 0).any():
            run = runs[at_once].iloc[0]
            raise UsageError(
                f"{run['folder']} reaches the target of {run['workload']} at update 0, before any training: set a "
                "target that the initial weights do not reach, or move the run elsewhere"
            )
        by_run = rows.groupby("run")
        last = by_run[["global_step", "score"]].max()
        best = by_run["value"].max().where(~lower_is_better, by_run["value"].min())
        return runs.assign(
            reached=hits["position"].notna(),
            evaluations=hits["position"],
            steps=hits["global_step"].fillna(np.inf),
            seconds=hits["score"].fillna(np.inf),
            last_steps=last["global_step"],
            last_seconds=last["score"],
            best=best,
            shortfall=(best - target) * np.where(lower_is_better, 1, -1),
            final=rows.drop_duplicates("run", keep="last").set_index("run")["value"],
            count=by_run.size(),
            **{f"crossed_{unit}": column for unit, column in self._crossed().items()},
        )

    def _crossed(self) -> dict[str, list[float]]:
        """Of every run, in its order."""
        found: dict[str, list[float]] = {"steps": [], "seconds": []}
        levels = self.targets[["target", "lower"]].to_dict("index")
        for folder, workload in zip(self.logs.runs["folder"], self.logs.runs["workload"]):
            curve, target = self.smooth[folder], levels[workload]
            for unit, column in found.items():
                column.append(crossing.first(curve[unit], curve["value"], target["target"], target["lower"]))
        return found

    @cached_property
    def smooth(self) -> dict[str, dict[str, np.ndarray]]:
        """`curves` as arrays, the values as running medians."""
        return {
            folder: {
                "steps": curve["steps"].to_numpy(dtype=float),
                "seconds": curve["seconds"].to_numpy(dtype=float),
                "value": crossing.smooth(curve["value"].to_numpy(dtype=float), self.median_of),
            }
            for folder, curve in self.curves.items()
        }

    @cached_property
    def best(self) -> pd.DataFrame:
        """`studies` of these trials, by the official rule."""
        return studies(self.trials)

    @cached_property
    def curves(self) -> dict[str, pd.DataFrame]:
        """For each run, by its folder: steps, seconds and value (the validation metric), one row per evaluation that
        has a value."""
        rows = self.logs.evaluations[["run", "global_step", "score"]].assign(value=self.values)
        rows = rows.rename(columns={"global_step": "steps", "score": "seconds"}).dropna(subset="value")
        groups = dict(iter(rows.groupby("run")))
        return {folder: groups.get(run, rows.iloc[:0]) for run, folder in enumerate(self.logs.runs["folder"])}


def interpolated(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `Measured.trials` or `studies` with their crossings for steps and seconds, and reached by these.

    For comparisons of our own. Official scores are by the first evaluation at the target."""
    return rows.assign(
        steps=rows["crossed_steps"], seconds=rows["crossed_seconds"], reached=np.isfinite(rows["crossed_seconds"])
    )


def studies(table: pd.DataFrame, rule: Rule = "fewest_evaluations") -> pd.DataFrame:
    """The best trial of each study: one row per submission, workload and study.

    Args:
        table: of `Measured.trials`.
        rule: how the best trial is picked among those that reach the target. `fewest_evaluations` is what the
            official scoring code does, `fastest` what the rules say. Where two trials have as many evaluations the
            official code takes the one that the file system lists first; here, the faster.

    Returns:
        The rows of `table` picked, with `trials`, their number in the study, and with last_steps and last_seconds of
        the trial that went furthest. A study without a hit gives the trial that came closest, with infinite steps and
        seconds.
    """
    order = ["evaluations", "seconds"] if rule == "fewest_evaluations" else ["seconds"]
    ordered = table.sort_values([*STUDY, *order, "shortfall", "trial"], ignore_index=True)
    trials = ordered.groupby(STUDY)
    return (
        ordered.assign(
            trials=trials["trial"].transform("size"),
            last_steps=trials["last_steps"].transform("max"),
            last_seconds=trials["last_seconds"].transform("max"),
        )
        .drop_duplicates(STUDY)
        .reset_index(drop=True)
    )


def submissions(best: pd.DataFrame, unit: str = "seconds") -> pd.DataFrame:
    """Median over studies: rows submissions, columns workloads.

    It is inf where half of the studies or more missed. It is NaN where there is no run, or no steps that count
    (analysis/measures/pace.py).
    """
    with np.errstate(invalid="ignore"):  # the median of two infinities
        medians = best.dropna(subset=unit).groupby(["submission", "workload"])[unit].median()
    # pandas averages the middle two; inf and inf give NaN there.
    medians = medians.where(medians.notna(), np.inf)
    return medians.unstack("workload")


def difference(table: pd.DataFrame, best: pd.DataFrame, fastest: pd.DataFrame) -> pd.DataFrame:
    """Studies in which the trial of the official rule is not the fastest.

    It has the seconds of both, and what the official one adds as a share.

    attrs: compared, the studies that reached the target; ties and spread. In a tie several trials have the fewest
    evaluations at different times. There the official code's choice depends on how the file system lists them. The
    spread is the largest difference in such a tie, as a share.

    Args:
        table: of `Measured.trials`.
        best, fastest: its `studies` by both rules.
    """
    rules: dict[Rule, pd.DataFrame] = {"fewest_evaluations": best, "fastest": fastest}
    both = pd.DataFrame({rule: picked.set_index(STUDY)["seconds"] for rule, picked in rules.items()})
    both = both[np.isfinite(both["fastest"])]
    excess = both["fewest_evaluations"] / both["fastest"] - 1
    differ = both.assign(excess=excess)[excess > 0].reset_index()
    reached = table[table["reached"]]
    fewest = reached[reached["evaluations"] == reached.groupby(STUDY)["evaluations"].transform("min")]
    tied = fewest.groupby(STUDY)["seconds"]
    spread = (tied.max() / tied.min() - 1).max() if len(fewest) else 0.0
    differ.attrs.update(compared=len(both), ties=int((tied.nunique() > 1).sum()), spread=spread)
    return differ


def unequal(table: pd.DataFrame) -> str | None:
    """A line that says which studies have other numbers of trials, or workloads other numbers of studies, than most."""
    per_study = table.groupby(STUDY).size()
    per_workload = table.groupby(["submission", "workload"])["study"].nunique()
    odd = [_odd(per_study, "trials", "studies"), _odd(per_workload, "studies", "workloads")]
    return "; ".join(filter(None, odd)) or None


def _odd(counts: pd.Series, what: str, where: str) -> str:
    usual = counts.mode().max()
    strange = counts[counts != usual]
    if strange.empty:
        return ""
    names = ", ".join(f"{name} ({n})" for name, n in strange.groupby("submission").size().items())
    return f"unequal: {len(strange)} of {len(counts)} {where} have other than {usual} {what}: {names}"
