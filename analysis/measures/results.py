"""What the scripts say of logs, made once: scores, ranks, ratios to the baseline, and what is odd about the logs."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from analysis.measures import crossing, curves, gpu_hours, lead, pace, score, speedup, to_target, what_if
from analysis.measures.lead import Leads
from analysis.measures.speedup import Speedup
from analysis.measures.what_if import WhatIf
from analysis.reading import meta
from analysis.reading.logs import Logs, summary_of_skipped
from analysis.targets import resolve
from analysis.targets.versions import OWN
from weight_averaging.errors import UsageError

BASELINES = ("baseline", "nadamw", "adamw", "nadamw_baselinev05")


@dataclass(frozen=True)
class Results:
    """What was measured.

    Attributes:
        measured: the runs whose workloads have a target, as they are logged.
        trials, best: theirs and of `to_target.studies`, with NaN for steps that are no updates, and with hypothetical
            entries.
        times: median seconds or steps to target, of `to_target.submissions`.
        scores: the best first.
        real_scores: those without hypothetical entries.
        profile: of `score.performance_profile`.
        baseline: the submission that the others are compared with.
        unit: of times, scores and all figures: seconds for official logs, whose evaluations come by wall time,
            steps for miniature ones.
        compared: `best`; for miniature logs with interpolated crossings in the place of evaluations at the target.
        ratios: per other submission its `Speedup` over the baseline in `unit`, of `compared`.
        gpus: of the machine that `hours` are of.
        hours: of `gpu_hours.gpu_hours`.
        notes: lines on what was left out, kept, missing or strange.
    """

    measured: to_target.Measured
    trials: pd.DataFrame
    best: pd.DataFrame
    times: pd.DataFrame
    scores: pd.Series
    real_scores: pd.Series
    profile: pd.DataFrame
    baseline: str
    unit: curves.Unit
    compared: pd.DataFrame
    ratios: dict[str, Speedup]
    gpus: int
    hours: pd.DataFrame
    notes: list[str]

    @property
    def logs(self) -> Logs:
        return self.measured.logs

    @property
    def targets(self) -> pd.DataFrame:
        return self.measured.targets

    @cached_property
    def ranks(self) -> dict[str, int]:
        """By score, the best first; equal scores have the same."""
        return {str(name): int((self.scores > score).sum()) + 1 for name, score in self.scores.items()}

    @cached_property
    def reached(self) -> dict[str, str]:
        """How many of the scored targets each submission reaches in the median, as 7/8."""
        times = self.times.reindex(columns=resolve.base(self.targets).index).astype(float)
        return {
            str(name): f"{n}/{self.targets.attrs['workloads']}" for name, n in np.isfinite(times).sum(axis=1).items()
        }

    @cached_property
    def leads(self) -> Leads | None:
        """`lead.table` of the trial that counts in each study; None where there are no ratios."""
        if not self.ratios:
            return None
        counted = self.logs.runs[self.logs.runs["folder"].isin(self.best["folder"])]
        found = lead.pairs(counted, self.measured.smooth, self.targets, self.baseline, self.unit)
        return lead.table(found) if len(found) else None


def of(
    logs: Logs,
    version: str | None = None,
    baseline: str | None = None,
    unit: curves.Unit | None = None,
    imagined: Sequence[WhatIf] = (),
    gpus: int | None = None,
    median_of: int = crossing.MEDIAN_OF,
) -> Results:
    """Measure logs.

    Args:
        logs: of `logs.read`.
        version, baseline, unit, gpus: None: found from the logs.
        imagined: hypothetical entries to add.
        median_of: of `Measured`.

    Raises:
        UsageError: as `resolve.resolve`; the baseline has no run; the submission of a hypothetical entry has none.
    """
    targets = resolve.resolve(logs, version)
    notes = [*summary_of_skipped(logs), *targets.attrs["notes"]]
    measured = to_target.Measured(logs.select(logs.runs["workload"].isin(targets.index)), targets, median_of)
    odd = pace.odd(measured.logs, targets)
    notes += pace.notes(odd)
    trials = what_if.add(pace.without(measured.trials, odd), imagined)
    best = to_target.studies(trials)
    if unit is None:
        unit = "steps" if targets.attrs["version"] == OWN else "seconds"
    if unit == "steps" and len(odd):
        unit = "seconds"
        notes.append("all is over seconds, since some steps are no updates")
    times = to_target.submissions(best, unit)
    scores, profile = score.score(times, targets)
    names = [entry.name for entry in imagined]
    real_scores = score.score(times.drop(index=names, errors="ignore"), targets)[0] if names else scores
    notes += [
        f"{entry.name}: hypothetical, the runs of {entry.submission} with scaled times to target; no such run exists"
        for entry in imagined
    ]
    chosen, more = _baseline(list(scores.index), baseline)
    others = [name for name in scores.index if name != chosen]
    compared = to_target.interpolated(best) if targets.attrs["version"] == OWN else best
    ratios = speedup.compare(compared, times, targets, others, chosen, unit)
    scored = best[best["workload"].isin(resolve.base(targets).index)]
    notes += more + [_no_ratio(scored, name, chosen) for name in others if name not in ratios]
    notes += _missing(best, targets)
    if (line := to_target.unequal(trials)) is not None:
        notes.append(f"{line}; medians are over the studies there are")
    gpus = gpus or targets.attrs["gpus"]
    return Results(
        measured=measured,
        trials=trials,
        best=best,
        times=times,
        scores=scores,
        real_scores=real_scores,
        profile=profile,
        baseline=chosen,
        unit=unit,
        compared=compared,
        ratios=ratios,
        gpus=gpus,
        hours=gpu_hours.gpu_hours(best, targets, gpus),
        notes=notes,
    )


def _no_ratio(best: pd.DataFrame, name: str, baseline: str) -> str:
    both = [set(best.loc[best["submission"] == one, "workload"]) for one in (name, baseline)]
    if both[0] & both[1]:
        return f"neither {name} nor {baseline} reached a target: nothing to compare"
    return f"{name} has no workload in common with {baseline}: no ratio"


def title(found: Results) -> str:
    """What the scores are by: benchmark version and ruleset, and the unit where it is not the benchmark's."""
    version, ruleset = found.targets.attrs["version"], found.targets.attrs["ruleset"]
    whose = "the runs' own targets" if version == OWN else f"AlgoPerf {version}"
    rules = f", {meta.RULESETS[ruleset]}" if ruleset and version != OWN else ""
    return f"{whose}{rules}" + (", over updates" if found.unit == "steps" else "")


def _baseline(ranked: list[str], asked: str | None) -> tuple[str, list[str]]:
    """The baseline asked for, or the one that is there by name, or, with a note, the best."""
    if asked is not None:
        if asked not in ranked:
            there = ", ".join(sorted(ranked))
            raise UsageError(f"no run of the baseline {asked!r}; choose --baseline from {there}")
        return asked, []
    if found := next((name for name in BASELINES if name in ranked), None):
        return found, []
    note = f"no {' or '.join(BASELINES)} among the submissions: compared with the best, {ranked[0]}; see --baseline"
    return ranked[0], [note] if len(ranked) > 1 else []


def _missing(best: pd.DataFrame, targets: pd.DataFrame) -> list[str]:
    """Lines on workloads that nobody or not everybody ran: the score is a share of all workloads."""
    count = targets.attrs["workloads"]
    names = resolve.base(targets).index
    ran = best[best["workload"].isin(names)].groupby("submission")["workload"].agg(set)
    lines = []
    if len(names) < count:
        lines.append(f"{count - len(names)} of the version's {count} workloads have no run: missed by all")
    for name in best["submission"].unique():
        if lacking := [workload for workload in names if workload not in ran.get(name, set())]:
            lines.append(f"{name} has no run of {', '.join(lacking)}: missed")
    variants = {variant: base for variant, base in targets.attrs["variants"].items() if base in names}
    if nobody := [variant for variant in variants if variant not in targets.index]:
        lines.append(f"no run of the held-out {', '.join(nobody)}: the base workloads count without")
    lacking = [
        name
        for name, there in best.groupby("submission")["workload"].agg(set).items()
        if any(base in there and variant not in there and variant not in nobody for variant, base in variants.items())
    ]
    if lacking:
        lines.append(f"{', '.join(lacking)} lack a held-out variant of a workload that they ran: missed")
    return lines
