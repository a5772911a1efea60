"""What the runs say of each conclusion, by the words of docs/results/rules.md, section 12."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.evidence.data import RAW, Evidence, Run
from analysis.evidence.ratios import Pair, Ratio, Ratios, along, pair, summary, target
from analysis.measures import horizon, intervals

PRIMARY, PAPERS = "growing_15", "lawa_1"
DECAY, CONSTANT = "nadamw", "nadamw_no_decay"
WORKLOADS = 8
ENOUGH_SEEDS = 5  # with fewer on any workload nothing is concluded of part A
PAPERS_MEAN = 0.73  # the geometric mean over workloads of the paper's released files
MOMENTS = (0.3, 0.5, 0.7)
LONGEST = (
    0.35  # share of the elapsed updates up to which windows are fitted: longer ones hold the beginning of training
)
# Section 13: the standard deviation of the baseline's final metric over five seeds.
MARGINS = {
    "mini_criteo1tb": 0.0012, "mini_fastmri": 0.0029, "mini_finewebedu_lm": 0.0155, "mini_imagenet_vit": 0.0063,
    "mini_librispeech_conformer": 0.0349, "mini_librispeech_deepspeech": 0.0134, "mini_ogbg": 0.0151, "mini_wmt": 0.53,
}  # fmt: skip


@dataclass(frozen=True)
class Conclusion:
    """A line of the page: what is claimed, what was measured, and what that means.

    Attributes:
        number: of the rules.
        measured: in words and numbers.
        ratio: for the figure; None where the measure is none.
        enough: whether there are the runs that the rules ask for; without them the word is not final.
        before: what had been said of it, and the page that said so.
    """

    number: str
    claim: str
    measured: str
    word: str
    enough: bool
    before: str
    page: str
    ratio: Ratio | None = None


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


def by_share(runs: dict[str, list[Run]], name: str, share: float) -> Ratios | None:
    """The same to what the raw run has by a share of training; None where some workload has nothing by then."""
    pairs: dict[str, list[Pair]] = {}
    for workload, mine in runs.items():
        found = [one for run in mine if (one := along(run, name, share)) is not None]
        if not found:
            return None
        pairs[workload] = found
    return summary(pairs) if pairs else None


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


def enough(runs: dict[str, list[Run]], seeds: int = ENOUGH_SEEDS) -> bool:
    return len(runs) == WORKLOADS and all(len(mine) >= seeds for mine in runs.values())


def all_of(evidence: Evidence) -> list[Conclusion]:
    """Those that the runs made so far bear upon."""
    decay, constant = evidence.of("A", DECAY), evidence.of("A", CONSTANT)
    result: list[Conclusion] = []
    if decay:
        result += [_sooner(decay), _as_in_the_paper(decay), _share(evidence), _final(decay)]
    if decay and constant:
        result.append(_no_decay(decay, constant))
    long = evidence.of("B", DECAY)
    if decay and long:
        result += _longer(decay, long)
    return sorted(result, key=lambda one: one.number)


def _sooner(runs: dict[str, list[Run]]) -> Conclusion:
    found = to_target(runs, PRIMARY)
    beside = to_target(runs, PAPERS)
    return Conclusion(
        "1", "averaging reaches the target sooner",
        f"{_any(found)}; LAWA of 1 % {_any(beside)}", _word(found.says()), enough(runs),
        ".90 over eight workloads, three seeds, by an interval that did not hold what it said", "../suite/README.md",
        found.any,
    )  # fmt: skip


def _as_in_the_paper(runs: dict[str, list[Run]]) -> Conclusion:
    found = to_target(runs, PRIMARY)
    beside = to_target(runs, PAPERS)
    holds = found.any.low <= PAPERS_MEAN <= found.any.high
    word = ("confirmed" if found.says().startswith("sooner") else "undecided") if holds else "refuted"
    return Conclusion(
        "1b", f"by as much as in the paper ({PAPERS_MEAN})",
        f"{_any(found)} holds {'it' if holds else 'it not'}; LAWA of 1 % {_any(beside)}", word, enough(runs),
        "held against the paper's .82, which is another statistic", "../suite/README.md", beside.any,
    )  # fmt: skip


def _share(evidence: Evidence) -> Conclusion:
    lows, highs, shown = [], [], []
    lengths = [(part, runs) for part in ("A", "B", "C") if (runs := evidence.of(part, DECAY))]
    for part, runs in lengths:
        for moment in MOMENTS:
            optima = best_windows(runs, moment)
            if len(optima) < 2:
                continue
            middle, low, high = common(optima)
            lows.append(low)
            highs.append(high)
            shown.append(f"{part} at {moment:.0%} {middle:.0%} ({low:.0%} to {min(high, 1.0):.0%})")
    holds = bool(lows) and max(lows) <= min(highs)
    each = f"; every interval holds {max(lows):.0%} to {min(highs):.0%}" if holds else "; no share is in all"
    several = len(lengths) > 1
    word = ("confirmed" if holds else "refuted") if several or not holds else "undecided"
    told = "".join([", ".join(shown), each, "" if several else "; one length so far"]) if shown else "too few windows"
    complete = all(enough(runs, 3) for _, runs in lengths)
    return Conclusion(
        "2b", "the best window is a constant share of the elapsed updates", told, word, complete,
        "half-way optima of eight studies, 15 % of the elapsed updates", "../horizon/README.md",
    )  # fmt: skip


def _final(runs: dict[str, list[Run]]) -> Conclusion:
    words = [one.word for one in differences(runs, PRIMARY).values()]
    beside = [one.word for one in differences(runs, PAPERS).values()]
    beyond = words.count("better") + words.count("worse")
    word = "confirmed" if words.count("within") >= 6 and not beyond else "refuted" if beyond >= 3 else "undecided"
    return Conclusion(
        "5", "with the rate annealed to zero the final score gains nothing",
        f"{_counted(words)}; LAWA of 1 % {_counted(beside)}", word, enough(runs),
        "differences below the spread of three seeds", "../final_learning_rate/README.md",
    )  # fmt: skip


def _no_decay(decay: dict[str, list[Run]], constant: dict[str, list[Run]]) -> Conclusion:
    gain = [one.word for one in differences(constant, PRIMARY).values()]
    behind = [one.word for one in differences(constant, PRIMARY, decay).values()]
    met = gain.count("better") >= 6 and behind.count("worse") >= 6
    word = "confirmed" if met else "refuted" if behind.count("within") >= 6 else "undecided"
    return Conclusion(
        "6", "without decay averaging gains much, and does not match decay",
        f"over raw {_counted(gain)}; against decay {_counted(behind)}", word, enough(decay) and enough(constant),
        "at one rate for both schedules", "../merges/README.md",
    )  # fmt: skip


def _longer(short: dict[str, list[Run]], long: dict[str, list[Run]]) -> list[Conclusion]:
    there = sorted(set(short) & set(long))
    before, after = (to_target({w: runs[w] for w in there}, PRIMARY) for runs in (short, long))
    logs = [math.log(after.workloads[w].ratio / before.workloads[w].ratio) for w in there]
    low, high = np.exp(intervals.student(np.array(logs)))
    ratio = Ratio(float(np.exp(np.mean(logs))), float(low), float(high), "", sum(len(long[w]) for w in there))
    complete = enough(long, 3) and enough(short)
    result = [
        Conclusion(
            "3", "longer runs gain more (ratio of ratios)", _counted_ratio(ratio, len(there)),
            _word(ratio.verdict), complete, "not measured", "../horizon/README.md", ratio,
        )
    ]  # fmt: skip
    late = by_share(long, PRIMARY, 0.8)
    if late is not None:
        result.append(
            Conclusion(
                "3b", "and late targets gain too (80 % of training)", _any(late), _word(late.says()), complete,
                "not measured", "../horizon/README.md", late.any,
            )
        )  # fmt: skip
    return result


def _word(verdict: str) -> str:
    """What the verdict on a ratio makes of the claim of a gain."""
    return {"sooner": "confirmed", "later": "refuted", "equal within 5%": "refuted"}.get(
        verdict.split(",")[0], "undecided"
    )


def _any(found: Ratios) -> str:
    """Over workloads, with what misses make of it."""
    whole = (
        f"; over the {len(found.workloads) - found.missing} without a miss {found.whole.shown()}" if found.whole else ""
    )
    plain = Ratio(found.any.ratio, found.any.low, found.any.high, "", found.any.seeds)
    until = " until target or end of run" if found.missing else ""
    return f"{_counted_ratio(plain, len(found.workloads))}{until}{whole}"


def _counted_ratio(ratio: Ratio, workloads: int) -> str:
    return f"{ratio.shown()}, {workloads} workloads, {ratio.seeds} pairs"


def _counted(words: Sequence[str]) -> str:
    names = {"within": "within the margin", "better": "better by more", "worse": "worse by more", "open": "open"}
    return ", ".join(f"{words.count(word)} {name}" for word, name in names.items() if word in words)
