"""Ratios, differences and optima of the runs of a variant, workload by workload and over workloads."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.evidence.data import RAW, Run
from analysis.evidence.ratios import Pair, Ratios, along, pair, summary, target
from analysis.measures import horizon, intervals

PRIMARY, PAPERS = "growing_15", "lawa_1"
DECAY, CONSTANT = "nadamw", "nadamw_no_decay"
WORKLOADS = 8
ENOUGH_SEEDS = 5  # with fewer on any workload nothing is concluded of part A
PAPERS_MEAN = 0.73  # the geometric mean over workloads of the paper's released files
MOMENTS = (0.3, 0.5, 0.7)
# Share of the elapsed updates up to which windows are fitted: longer ones hold the beginning of training.
LONGEST = 0.35
# Section 13: the standard deviation of the baseline's final metric over five seeds.
MARGINS = {
    "mini_criteo1tb": 0.0012, "mini_fastmri": 0.0029, "mini_finewebedu_lm": 0.0155, "mini_imagenet_vit": 0.0063,
    "mini_librispeech_conformer": 0.0349, "mini_librispeech_deepspeech": 0.0134, "mini_ogbg": 0.0151, "mini_wmt": 0.53,
}  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """Of final metrics, signed so that more is better, with its 95 % interval, beside the margin."""

    mean: float
    low: float
    high: float
    margin: float
    seeds: int

    @property
    def word(self) -> str:
        """`within` the margin, or `better` or `worse` by more than it, or `open`."""
        if self.low > self.margin:
            return "better"
        if self.high < -self.margin:
            return "worse"
        return "within" if -self.margin < self.low and self.high < self.margin else "open"

    def shown(self) -> str:
        ends = f" ({self.low:+.3g} to {self.high:+.3g})" if math.isfinite(self.low) else ""
        return f"{self.mean:+.3g}{ends}: {self.word}"


def to_target(runs: dict[str, list[Run]], name: str) -> Ratios:
    """Updates of an average to the target over those of the raw weights of the same run."""
    return summary({w: [pair(run, name, target(mine)) for run in mine] for w, mine in runs.items()})


def by_share(
    runs: dict[str, list[Run]], name: str, share: float, others: dict[str, list[Run]] | None = None
) -> Ratios | None:
    """The same to what the raw run has by a share of training; None where some workload has nothing by then.

    Args:
        others: whose raw runs these are, paired by seed; default: the runs themselves.
    """
    pairs: dict[str, list[Pair]] = {}
    for workload, mine in runs.items():
        theirs = {run.key[3]: run for run in (runs if others is None else others).get(workload, [])}
        both = [(run, theirs[run.key[3]]) for run in mine if run.key[3] in theirs]
        found = (along(run, name, share, None if others is None else other) for run, other in both)
        pairs[workload] = [one for one in found if one is not None]
    return summary(pairs) if pairs and all(pairs.values()) else None


def differences(
    runs: dict[str, list[Run]], name: str, others: dict[str, list[Run]] | None = None
) -> dict[str, Difference]:
    """Final validation metrics of an average minus those of the raw weights: of the same run, or, paired by seed, of
    `others`."""
    result = {}
    for workload, mine in runs.items():
        theirs = {run.key[3]: run for run in (others or runs).get(workload, [])}
        values = [run.sign * (run.final(name) - theirs[run.key[3]].final(RAW)) for run in mine if run.key[3] in theirs]
        if values:
            low, high = intervals.student(np.array(values))
            mean = float(np.mean(values))
            result[workload] = Difference(mean, float(low), float(high), MARGINS[workload], len(values))
    return result


def best_windows(runs: dict[str, list[Run]], share: float) -> dict[str, horizon.Optimum]:
    """Where the metric after a share of the run is best over the windows of LAWA, as shares of the elapsed updates.

    Of each workload the optimum of parabolas in the logarithm, a seed each (`horizon.optimum`).
    """
    result = {}
    for workload, mine in runs.items():
        rows = []
        for run in mine:
            elapsed = share * run.steps
            for name, window in run.facts["windows"].items():
                steps, values = run.curve(name)
                at = np.flatnonzero(np.abs(steps - elapsed) < 0.5)
                if name.startswith("lawa") and window <= elapsed and len(at):
                    part = window / elapsed
                    rows.append({"x": part, "y": values[at[0]], "study": run.key[3], "horizon": part})
        found = horizon.optimum(pd.DataFrame(rows), "x", "y", lower=False, up_to=LONGEST) if rows else None
        if found is not None:
            result[workload] = found
    return result


def common(optima: dict[str, horizon.Optimum]) -> tuple[float, float, float]:
    """The geometric mean of the optima of several workloads, and its interval for workloads like these."""
    logs = np.log([one.best for one in optima.values()])
    low, high = intervals.student(logs)
    return float(np.exp(logs.mean())), float(np.exp(low)), float(np.exp(high))


def enough(runs: dict[str, list[Run]], seeds: int = ENOUGH_SEEDS, workloads: int = WORKLOADS) -> bool:
    """Whether there are the runs that the rules ask for."""
    return len(runs) >= workloads and all(len(mine) >= seeds for mine in runs.values())
