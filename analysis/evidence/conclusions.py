"""What the runs say of each conclusion, by the words of docs/results/rules.md, section 12."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.evidence.data import Evidence, Run
from analysis.evidence.ratios import Ratio, Ratios
from analysis.evidence.summaries import (
    CONSTANT,
    DECAY,
    MOMENTS,
    PAPERS,
    PAPERS_MEAN,
    PRIMARY,
    WORKLOADS,
    best_windows,
    by_share,
    common,
    differences,
    enough,
    to_target,
)  # fmt: skip
from analysis.measures import intervals

PAPERS_HORIZON = (0.005, 0.02)
SIX = 6  # of eight workloads
# By part: at ten times the length translation saturates (rules, section 9), thirty times are planned for two.
PLANNED_WORKLOADS = {"A": WORKLOADS, "B": 7, "C": 2}
FLOOR = "cosine_to_0.1"
OPTIMIZERS = ("soap", "shampoo", "ademamix")  # Schedule-Free averages by itself


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
    if long or evidence.of("C", DECAY):
        result.append(_horizon(evidence))
    if floor := evidence.of("D", FLOOR):
        result += _floor(floor, decay)
    result += [_over(name, runs) for name in OPTIMIZERS if (runs := evidence.of("F", name))]
    small, large = evidence.of("E", "batch_0.25"), evidence.of("E", "batch_4")
    if small and large:
        result.append(_noise(small, large))
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
    if holds:
        word = "confirmed" if found.says().startswith("sooner") else "undecided"
    else:  # also where nobody missed
        whole = found.any if not found.missing else found.whole
        word = "refuted" if whole is not None and not whole.low <= PAPERS_MEAN <= whole.high else "undecided"
    return Conclusion(
        "1b", f"by as much as in the paper ({PAPERS_MEAN})",
        f"{_any(found)} holds {'it' if holds else 'it not'}; LAWA of 1 % {_any(beside)}", word, enough(runs),
        "held against the paper's .82, which is another statistic", "../suite/README.md", found.any,
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
    complete = all(enough(runs, 3, PLANNED_WORKLOADS[part]) for part, runs in lengths)
    return Conclusion(
        "2b", "the best window is a constant share of the elapsed updates", told, word, complete,
        "half-way optima of eight studies, 15 % of the elapsed updates", "../horizon/README.md",
    )  # fmt: skip


def _final(runs: dict[str, list[Run]]) -> Conclusion:
    words = [one.word for one in differences(runs, PRIMARY).values()]
    beside = [one.word for one in differences(runs, PAPERS).values()]
    beyond = words.count("better") + words.count("worse")
    word = "confirmed" if words.count("within") >= SIX and not beyond else "refuted" if beyond >= 3 else "undecided"
    return Conclusion(
        "5", "with the rate annealed to zero the final score gains nothing",
        f"{_counted(words)}; LAWA of 1 % {_counted(beside)}", word, enough(runs),
        "differences below the spread of three seeds", "../final_learning_rate/README.md",
    )  # fmt: skip


def _no_decay(decay: dict[str, list[Run]], constant: dict[str, list[Run]]) -> Conclusion:
    gain = [one.word for one in differences(constant, PRIMARY).values()]
    behind = [one.word for one in differences(constant, PRIMARY, decay).values()]
    met = gain.count("better") >= SIX and behind.count("worse") >= SIX
    word = "confirmed" if met else "refuted" if behind.count("within") >= SIX else "undecided"
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
    complete = enough(long, 3, PLANNED_WORKLOADS["B"]) and enough(short)
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


def _horizon(evidence: Evidence) -> Conclusion:
    """At the target's place, the nearest at which all windows are evaluated; of each workload the longest runs."""
    longest = {"B": evidence.of("B", DECAY), "C": evidence.of("C", DECAY)}
    inside, outside, shown = 0, 0, []
    for workload, mine in sorted((longest["B"] | longest["C"]).items()):
        place = round(20 * mine[0].facts["target_share"]) / 20
        found = best_windows({workload: mine}, place).get(workload)
        if found is None:
            continue
        low, high = found.low * place, found.high * place  # not finite of a single seed, and then neither
        inside += PAPERS_HORIZON[0] <= low and high <= PAPERS_HORIZON[1]
        outside += high < PAPERS_HORIZON[0] or low > PAPERS_HORIZON[1]
        ends = f" ({low:.1%} to {high:.1%})" if np.isfinite(low) else ""
        shown.append(f"{mine[0].facts['part']} {workload.removeprefix('mini_')} {found.best * place:.1%}{ends}")
    word = "confirmed" if inside >= SIX else "refuted" if outside >= SIX else "undecided"
    return Conclusion(
        "2", "the best horizon is 1 % of training", f"{', '.join(shown)}; {inside} inside, {outside} outside",
        word, all(enough(runs, 3, PLANNED_WORKLOADS[part]) for part, runs in longest.items() if runs or part == "B"),
        "2 to 7 % to a target, 4 to 8 % half-way, in short runs", "../horizon/README.md",
    )  # fmt: skip


def _floor(floor: dict[str, list[Run]], decay: dict[str, list[Run]]) -> list[Conclusion]:
    found = by_share(floor, PRIMARY, 0.9, decay)
    if found is None:
        return []
    return [
        Conclusion(
            "8", "a schedule with a floor gains late (90 % of training)", _any(found), _word(found.says()),
            enough(floor, 3), "one run: .95", "../final_learning_rate/README.md", found.any,
        )
    ]  # fmt: skip


def _over(name: str, runs: dict[str, list[Run]]) -> Conclusion:
    found = to_target(runs, PRIMARY)
    return Conclusion(
        "7", f"it adds to stronger optimizers: {name}", _any(found), _word(found.says()), enough(runs),
        "four workloads, three seeds", "../optimizers/README.md", found.any,
    )  # fmt: skip


def _noise(small: dict[str, list[Run]], large: dict[str, list[Run]]) -> Conclusion:
    """Of the best windows half-way."""
    few, many = best_windows(small, 0.5), best_windows(large, 0.5)
    there = sorted(set(few) & set(many))
    logs = np.log([few[w].best / many[w].best for w in there])
    low, high = np.exp(intervals.student(logs)) if len(there) > 1 else (np.nan, np.nan)
    word = "confirmed" if low > 1 else "refuted" if high < 1 else "undecided"
    ratio = Ratio(float(np.exp(np.mean(logs))) if there else np.nan, float(low), float(high), "", len(there))
    return Conclusion(
        "9", "the best length follows the noise (a quarter of the batch over four times)",
        f"{ratio.shown()}, {len(there)} workloads", word, len(there) == 3 and enough(small, 3, 3), "not measured",
        "../horizon/README.md",
    )  # fmt: skip


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
