"""The published submissions of the study (docs/results/rules.md, third part): their runs, and ratios over them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from analysis.evidence import ratios
from analysis.evidence.data import RAW, SHARE, Evidence, Run
from analysis.evidence.ratios import Pair, Ratios
from analysis.evidence.summaries import PAPERS, PRIMARY

AVERAGES = {PRIMARY: "growing, 15 %", PAPERS: "LAWA of 1 %", "ema_1": "EMA of 1 %"}
WORKLOADS = ("mini_criteo1tb", "mini_finewebedu_lm", "mini_imagenet_vit", "mini_librispeech_deepspeech")
# The third part's: parts and seeds that are planned, from how many seeds on a word stands, and the raw metric without
# which a rate is hopeless.
PLANNED, SEEDS, ENOUGH = {"P": 9, "Q": 5}, 5, 3
LEAST = dict(zip(WORKLOADS, (0.46218, 3.7788, 0.8264, 0.63132), strict=True))
OTHER_RATE = "_other_rate"  # behind the name of a submission: the best of three rates
OWN = "schedule_free"  # in the names of those that bring an average of their own


@dataclass(frozen=True)
class Submission:
    """One of them, with its runs by workload: those at its own rate, or at the best of three where that is hopeless.

    Attributes:
        hopeless: workloads on which no rate is good enough.
        other: workloads with another rate than its own.
        missing: workloads of which nothing is known yet.
    """

    name: str
    part: str
    runs: dict[str, list[Run]]
    hopeless: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def own_average(self) -> bool:
        return OWN in self.name

    @property
    def seeds(self) -> list[int]:
        """Those that all its workloads have; none as long as a workload is missing."""
        if self.missing or not self.runs:
            return []
        return sorted(set.intersection(*({run.key[3] for run in mine} for mine in self.runs.values())))

    def pairs(self, name: str) -> dict[str, list[Pair]]:
        """Of an average and the raw weights of the same run, by workload, a seed each."""
        found = {
            workload: [pair(run, name) for run in mine if run.key[3] in self.seeds]
            for workload, mine in self.runs.items()
        }
        return {workload: pairs for workload, pairs in found.items() if pairs}

    def slower(self) -> float:
        """What all averages together add to the seconds of an update, as a share; the median over its runs."""
        shares = [run.facts.get(SHARE, np.nan) for mine in self.runs.values() for run in mine]
        return float(np.nanmedian(shares))


def submissions(evidence: Evidence) -> list[Submission]:
    """All that have a run, in the order of their parts and names."""
    named = sorted({(run.key[0], run.key[1].removesuffix(OTHER_RATE)) for run in evidence.runs})
    result = []
    for part, name in named:
        own, others = evidence.of(part, name), evidence.of(part, f"{name}{OTHER_RATE}")
        one = Submission(name, part, {})
        for workload in WORKLOADS:
            mine = own.get(workload, [])
            if _hopeless(mine):
                mine = others.get(workload, [])
                if _hopeless(mine):
                    one.hopeless.append(workload)
                    continue
                one.other.append(workload)
            if mine:
                one.runs[workload] = mine
            else:
                one.missing.append(workload)
        result.append(one)
    return result


def _hopeless(runs: Sequence[Run]) -> bool:
    """Whether the raw weights of seed 0 end worse than they must."""
    return any(not run.sign * run.final(RAW) >= run.sign * LEAST[run.key[2]] for run in runs if run.key[3] == 0)


def pair(run: Run, name: str) -> Pair:
    """To what the raw weights have by the target's place."""
    found = ratios.along(run, name, float(run.facts["target_share"]))
    assert found is not None
    return found


def over(found: Sequence[Submission], name: str) -> Ratios | None:
    """Over submissions, a number each; None with fewer than two."""
    pairs = {one.name: _by_submission(one, name) for one in found if one.seeds}
    return ratios.summary(pairs) if len(pairs) > 1 else None


def _by_submission(one: Submission, name: str) -> list[Pair]:
    """A seed each: the mean over workloads."""
    by_seed = zip(*one.pairs(name).values(), strict=True)
    return [Pair(float(np.mean([one.log for one in pairs])), any(one.missed for one in pairs)) for pairs in by_seed]
