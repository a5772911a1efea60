"""The page of the study of published submissions (docs/results/rules.md, third part), made of the numbers by seed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.evidence import ratios
from analysis.evidence.data import RAW, SHARE, Evidence, Run
from analysis.evidence.page import rates_tried
from analysis.evidence.ratios import Pair, Ratios
from analysis.evidence.summaries import PAPERS, PRIMARY
from analysis.figures import style
from analysis.text import markdown
from weight_averaging.atomic_file import replacing

AVERAGES = {PRIMARY: "growing, 15 %", PAPERS: "LAWA of 1 %", "ema_1": "EMA of 1 %"}
WORKLOADS = ("mini_criteo1tb", "mini_finewebedu_lm", "mini_imagenet_vit", "mini_librispeech_deepspeech")
# The third part's: parts and seeds that are planned, from how many seeds on a word stands, and the raw metric without
# which a rate is hopeless.
PLANNED, SEEDS, ENOUGH = {"P": 9, "Q": 5}, 5, 3
LEAST = dict(zip(WORKLOADS, (0.46218, 3.7788, 0.8264, 0.63132), strict=True))
OTHER_RATE = "_other_rate"  # behind the name of a submission: the best of three rates
OWN = "schedule_free"  # in the names of those that bring an average of their own
TICKS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.4, 1.7, 2.0, 2.5, 3.0)
HEAD = """# Averaging what others have published

Submissions of the benchmark's leaderboards, unchanged, on four miniatures: each alone, and with the average of its
weights. The [rules](../rules.md), third part, were written before the first average was looked at. They say which, at
which points, how it is measured and what counts as confirmed. All here is made from the evaluations by seed in
[data](data/runs.csv) by one command:

    python -m scripts.evidence_page --study=published --folder=docs/results/published_submissions

`python -m scripts.evidence --plan=comparisons/evidence/published.yaml --part=P` (then `Q`) makes the runs.
"""


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
            workload: [_pair(run, name) for run in mine if run.key[3] in self.seeds]
            for workload, mine in self.runs.items()
        }
        return {workload: pairs for workload, pairs in found.items() if pairs}

    def slower(self) -> float:
        """What all averages together add to the seconds of an update, as a share; the median over its runs."""
        shares = [run.facts.get(SHARE, np.nan) for mine in self.runs.values() for run in mine]
        return float(np.nanmedian(shares))


def write(evidence: Evidence, folder: Path) -> list[Path]:
    """README.md and its figure. Returns what was written."""
    found = submissions(evidence)
    parts = [HEAD, _status(found), "## What holds\n", _conclusions(found), ""]
    made: list[Path] = []
    if any(one.runs for one in found):
        made += style.save(drawn(found), folder / "base_against_averaged", kinds=["png"])
        parts.append("![Base against averaged](base_against_averaged.png)\n")
    parts += ["## Each submission\n", _each(found), "", "## Each workload\n", _cells(found), "", rates_tried(evidence)]
    path = folder / "README.md"
    with replacing(path) as file:
        file.write(("\n".join(parts).rstrip() + "\n").encode())
    return [path, *made]


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


def _pair(run: Run, name: str) -> Pair:
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
    return [Pair(float(np.mean([pair.log for pair in pairs])), any(pair.missed for pair in pairs)) for pairs in by_seed]


def _groups(found: Sequence[Submission]) -> Iterator[tuple[str, str, list[Submission], int]]:
    """Number, claim, those that a conclusion is about, and how many of them are planned."""
    claim = "averaging brings published submissions sooner to what they have by the target's place"
    yield "10", claim, [one for one in found if one.part == "P" and not one.own_average], 7
    yield "11", "those that average themselves gain nothing more by it", [one for one in found if one.own_average], 5


def _conclusions(found: Sequence[Submission]) -> str:
    rows = []
    for number, claim, group, planned in _groups(found):
        word = "nothing yet"
        cells = dict.fromkeys((*AVERAGES.values(), "by time"), "-")
        some = over(group, PRIMARY)
        if some is not None:
            verdict = some.says().split(",")[0]
            gains, other = ("refuted", "confirmed") if number == "11" else ("confirmed", "refuted")
            word = {"sooner": gains, "later": other, "equal within 5%": other}.get(verdict, "undecided")
            cells = {title: total.any.shown() for name, title in AVERAGES.items() if (total := over(group, name))}
            slower = np.mean([np.log1p(one.slower()) for one in group if one.seeds])
            cells["by time"] = f"{some.any.ratio * np.exp(slower):.2f}"
        done = [one for one in group if one.seeds]
        least = min((len(one.seeds) for one in done), default=0)
        enough = len(done) == planned and least >= ENOUGH
        now = f"**{word}**" if enough else f"unfinished ({word} so far)"
        of = f"{len(done)} of {planned}, {least} to {max((len(one.seeds) for one in done), default=0)} seeds"
        rows.append({"": number, "conclusion": claim, "now": now, "submissions": of, **cells})
    return (
        "Updates of the average over those of the raw weights, over submissions, with the 95 % interval for "
        "submissions like these. The growing average decides. It is also the one by time, which counts the cost of all "
        "three averages.\n\n" + markdown(pd.DataFrame(rows))
    )


def _status(found: Sequence[Submission]) -> str:
    texts = []
    for part, planned in PLANNED.items():
        here = [one for one in found if one.part == part]
        seeds = [len(one.seeds) for one in here] + [0] * (planned - len(here))
        texts.append(
            f"{part}: {sum(map(bool, seeds))} of {planned} submissions, {min(seeds)} to {max(seeds)} seeds each"
        )
    text = f"Run so far: {'; '.join(texts)}.\n"
    if all(len(one.seeds) >= SEEDS for one in found) and len(found) == sum(PLANNED.values()):
        return text
    return (
        f"**Unfinished.** {SEEDS} seeds are planned, and a word stands from {ENOUGH} on. A submission counts with "
        f"those seeds that all its workloads have.\n\n{text}"
    )


def _each(found: Sequence[Submission]) -> str:
    rows = []
    for one in found:
        row = {"submission": one.name, "part": one.part, "average of its own": "yes" if one.own_average else "no"}
        row |= {"seeds": str(len(one.seeds)), **dict.fromkeys(AVERAGES.values(), "-"), "an update takes": "-"}
        if one.seeds:
            totals = {title: ratios.summary(one.pairs(name)).suite for name, title in AVERAGES.items()}
            row |= {title: total.shown() for title, total in totals.items()}
            row["an update takes"] = f"{1 + one.slower():.2f} times as long"
        without = [f"no rate good enough: {_short(one.hopeless)}"] if one.hopeless else []
        without += [f"best of three rates: {_short(one.other)}"] if one.other else []
        without += [f"not yet run: {_short(one.missing)}"] if one.missing else []
        rows.append({**row, "workloads": "; ".join(without) or "all four, as published"})
    return (
        "The geometric mean over workloads; from two seeds on with its interval, these workloads given. `>=`: an "
        "average never got there in some run, which counts with the whole run. P has one of each algorithm, Q other "
        f"versions and points.\n\n{markdown(pd.DataFrame(rows))}"
    )


def _short(workloads: Sequence[str]) -> str:
    return ", ".join(workload.removeprefix("mini_") for workload in workloads)


def _cells(found: Sequence[Submission]) -> str:
    rows = []
    for one in found:
        for workload, mine in one.runs.items():
            pairs = {title: [_pair(run, name) for run in mine] for name, title in AVERAGES.items()}
            single = {title: ratios.summary({workload: given}).workloads[workload] for title, given in pairs.items()}
            level = ratios.target(mine)
            reach = {
                name: sum(np.isfinite(ratios.crossed(run, name, level)) for run in mine) for name in (RAW, PRIMARY)
            }
            rows.append(
                {
                    "submission": one.name, "workload": workload.removeprefix("mini_"), "n": str(len(mine)),
                    "rate": f"{mine[0].facts['learning_rate']:.3g}{' *' if workload in one.other else ''}",
                    **{title: ratio.shown() for title, ratio in single.items()},
                    "reach the miniature's target": f"{reach[RAW]} raw, {reach[PRIMARY]} growing",
                    "at the end": f"{np.mean([run.final(RAW) for run in mine]):.4g} raw, "
                    f"{np.mean([run.final(PRIMARY) for run in mine]):.4g} growing ({mine[0].facts['metric']})",
                }
            )  # fmt: skip
    if not rows:
        return "Nothing yet."
    return (
        "Updates over those of the raw weights of the same run, to what these have by the target's place. `*`: the "
        f"best of three rates.\n\n{markdown(pd.DataFrame(rows))}"
    )


def drawn(found: Sequence[Submission]) -> Figure:
    """Base against averaged, a point a submission and workload; beside it the ratios of each submission."""
    figure, (left, right) = style.panels(2, size=(4.6, 1.6 + 0.2 * len(found)), columns=2)
    names = [one.name for one in found]
    looks = dict(zip(WORKLOADS, zip((style.COLOURS[i] for i in (6, 4, 3, 5)), "os^D"), strict=True))
    for y, one in enumerate(found):
        for workload, mine in one.runs.items():
            colour, marker = looks[workload]
            look = {"color": colour, "marker": marker, "markersize": 6, "linestyle": "none"}
            look["markerfacecolor"] = "white" if one.own_average else colour
            ratio = float(np.exp(np.mean([_pair(run, PRIMARY).log for run in mine])))
            level = [ratios.reached(run, float(run.facts["target_share"])) / run.steps for run in mine]
            base = float(np.mean(level))
            left.plot(base, base * ratio, **look)
            right.plot(ratio, y, **look)
        logs = [pair.log for pairs in one.pairs(PRIMARY).values() for pair in pairs]
        if logs:
            right.plot(np.exp(np.mean(logs)), y, "|", color="black", markersize=14, markeredgewidth=1.6)
    ends = [0.2, 1.0]
    left.plot(ends, ends, color="0.4", linewidth=1, linestyle="--")
    left.plot(ends, [0.82 * end for end in ends], color="0.6", linewidth=1, linestyle=":")
    left.set_xlabel("updates of the base to the level / updates of the run")
    left.set_ylabel("the same with the growing average (lower is better)")
    right.axvline(1.0, color="0.4", linewidth=1, linestyle="--")
    right.set_yticks(range(len(names)), names)
    right.set_ylim(len(names) - 0.5, -0.5)
    right.set_xscale("log")
    low, high = right.get_xlim()
    ticks = [tick for tick in TICKS if low <= tick <= high]
    right.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    right.minorticks_off()
    right.set_xlabel("updates of the average / the base's (lower is better)")
    shapes = [
        style.mark_key(workload.removeprefix("mini_"), marker=marker, color=colour, markersize=6)
        for workload, (colour, marker) in looks.items()
    ]
    keys = [
        *shapes,
        style.mark_key("hollow: averages itself", marker="o", color="0.3", markerfacecolor="white", markersize=6),
        style.mark_key("mean over workloads", marker="|", color="black", markersize=12, markeredgewidth=1.6),
        *(
            Line2D([], [], linestyle=line, color=colour, linewidth=1, label=label)
            for label, line, colour in (("as many updates", "--", "0.4"), ("82 % of them, as in the paper", ":", "0.6"))
        ),
    ]
    style.legend_below(figure, [left, right], keys=keys)
    return figure
