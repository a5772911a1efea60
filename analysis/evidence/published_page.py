"""The page of the study of published submissions, made of the numbers by seed: README.md and its figure."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.evidence import ratios
from analysis.evidence.data import RAW, Evidence
from analysis.evidence.made_of import rates_tried
from analysis.evidence.published import AVERAGES, ENOUGH, PLANNED, SEEDS, WORKLOADS, Submission, over, pair, submissions
from analysis.evidence.summaries import PRIMARY
from analysis.figures import style
from analysis.text import markdown
from weight_averaging.atomic_file import replacing
from weight_averaging.words import between

TICKS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4, 1.7, 2.0, 2.5, 3.0)
HEAD = """# Averaging what others have published

Submissions of the benchmark's leaderboards, unchanged, on four miniatures: each alone, and with the average of its
weights. The [rules](../rules.md), third part, were written before the first average was looked at. They say which, at
which points, how it is measured and what counts as confirmed. All here is made from the evaluations by seed in
[data](data/runs.csv) by one command:

    python -m scripts.evidence_page --study=published --folder=docs/results/published_submissions

`python -m scripts.evidence --plan=comparisons/evidence/published.yaml --part=P` (then `Q`) makes the runs.

Points are as published: they were tuned for the benchmark's workloads, not for these. Tuned NadamW has learning rates
of .005 to .01 here and [gains more](../evidence/README.md); most of these points have lower ones. Whether that is the
reason is not tested.
"""


def write(evidence: Evidence, folder: Path) -> list[Path]:
    """README.md and its figure. Returns what was written."""
    found = submissions(evidence)
    parts = [HEAD, _status(found), "## What holds\n", _conclusions(found), "", _in_words(found)]
    made: list[Path] = []
    if any(one.runs for one in found):
        made += style.save(drawn(found), folder / "base_against_averaged", kinds=["png"])
        parts.append("![Base against averaged](base_against_averaged.png)\n")
    parts += ["## Each workload\n", _workloads(found), ""]
    parts += [
        "## Each submission\n",
        _each(found),
        "",
        "## Each submission on each workload\n",
        _cells(found),
        "",
        rates_tried(evidence),
    ]
    path = folder / "README.md"
    with replacing(path) as file:
        file.write(("\n".join(parts).rstrip() + "\n").encode())
    return [path, *made]


def _groups(found: Sequence[Submission]) -> Iterator[tuple[str, str, list[Submission], int]]:
    """Number, claim, those that a conclusion is about, and how many of them are planned."""
    claim = "averaging brings published submissions sooner to what they have by the target's place"
    yield "10", claim, [one for one in found if one.part == "P" and not one.own_average], 7
    yield "11", "those that average themselves gain nothing more by it", [one for one in found if one.own_average], 5


def _conclusions(found: Sequence[Submission]) -> str:
    rows = []
    for number, claim, group, planned in _groups(found):
        word = ""
        cells = dict.fromkeys((*AVERAGES.values(), "by time"), "-")
        some = over(group, PRIMARY)
        if some is not None:
            verdict = some.says().split(",")[0]
            gains, other = ("refuted", "confirmed") if number == "11" else ("confirmed", "refuted")
            word = {"sooner": gains, "later": other, "equal within 5%": other}.get(verdict, "undecided")
            cells = {title: total.any.shown() for name, title in AVERAGES.items() if (total := over(group, name))}
            cells[AVERAGES[PRIMARY]] = _decisive(some)
            slower = np.mean([np.log1p(one.slower()) for one in group if one.seeds])
            cells["by time"] = f"{some.any.ratio * np.exp(slower):.2f}"
        done = [one for one in group if one.seeds]
        least = min((len(one.seeds) for one in done), default=0)
        enough = len(done) == planned and least >= ENOUGH
        now = f"**{word}**" if enough else f"unfinished ({word} so far)" if some else "unfinished"
        of = f"{len(done)} of {planned}, {between(least, max((len(one.seeds) for one in done), default=0), 'seed')}"
        rows.append({"": number, "conclusion": claim, "now": now, "submissions": of, **cells})
    return (
        "Updates of the average over those of the raw weights, over submissions, with the 95 % interval for "
        "submissions like these. The growing average decides. It is also the one by time, which counts the cost of all "
        "three averages.\n\n" + markdown(pd.DataFrame(rows))
    )


def _decisive(found: ratios.Ratios) -> str:
    """The ratio that a word is of: until there or the end of the run, and over those that never missed."""
    if not found.missing:
        return found.any.shown()
    until = replace(found.any, bound="").shown()
    count = len(found.workloads) - found.missing
    whole = f"; over the {count} without a miss {found.whole.shown()}" if found.whole else ""
    return f"{until} until there or the end of the run{whole}"


def _in_words(found: Sequence[Submission]) -> str:
    """How often the growing average was sooner, whatever has been run."""
    texts = []
    for own, who in ((False, "that does not average itself"), (True, "that does")):
        here = [mine for one in found if one.own_average == own for mine in one.runs.values()]
        values = np.exp([np.mean([pair(run, PRIMARY).log for run in mine]) for mine in here])
        if here:
            sooner, later = (values < 0.95).sum(), (values > 1.05).sum()
            texts.append(
                f"Of {len(here)} pairs of a workload and a submission {who}, the growing average is sooner by more "
                f"than 5 % in {sooner}, later by more than that in {later}, and about as soon in "
                f"{len(here) - sooner - later}; the median ratio is {np.median(values):.2f}."
            )
    return f"In words, whatever has been run: {' '.join(texts)}\n" if texts else ""


def _status(found: Sequence[Submission]) -> str:
    texts = []
    for part, planned in PLANNED.items():
        here = [one for one in found if one.part == part]
        seeds = [len(one.seeds) for one in here] + [0] * (planned - len(here))
        texts.append(
            f"{part}: {sum(map(bool, seeds))} of {planned} submissions, {between(min(seeds), max(seeds), 'seed')} each"
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


def _workloads(found: Sequence[Submission]) -> str:
    """Over the submissions that have run on a workload, whether or not they have on the others."""
    rows = []
    for own in (False, True):
        for workload in WORKLOADS:
            here = [one.runs[workload] for one in found if one.own_average == own and workload in one.runs]
            if not here:
                continue
            logs = {name: [np.mean([pair(run, name).log for run in mine]) for mine in here] for name in AVERAGES}
            primary = np.exp(logs[PRIMARY])
            rows.append(
                {
                    "average of its own": "yes" if own else "no", "workload": workload.removeprefix("mini_"),
                    "submissions": str(len(here)), "growing is sooner": f"{(primary < 1).sum()} of {len(here)}",
                    "lowest, highest": f"{primary.min():.2f}, {primary.max():.2f}",
                    **{title: f"{np.exp(np.mean(logs[name])):.2f}" for name, title in AVERAGES.items()},
                }
            )  # fmt: skip
    if not rows:
        return "Nothing yet."
    return (
        "Description: geometric means over all submissions that have a run there, of P and Q alike, and the range "
        f"of the growing average.\n\n{markdown(pd.DataFrame(rows))}"
    )


def _short(workloads: Sequence[str]) -> str:
    return ", ".join(workload.removeprefix("mini_") for workload in workloads)


def _cells(found: Sequence[Submission]) -> str:
    rows = []
    for one in found:
        for workload, mine in one.runs.items():
            pairs = {title: [pair(run, name) for run in mine] for name, title in AVERAGES.items()}
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
            look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 6, "linestyle": "none"}
            look["markerfacecolor"] = "white" if one.own_average else colour
            ratio = float(np.exp(np.mean([pair(run, PRIMARY).log for run in mine])))
            level = [ratios.reached(run, float(run.facts["target_share"])) / run.steps for run in mine]
            base = float(np.mean(level))
            left.plot(base, base * ratio, **look)
            right.plot(ratio, y, **look)
        logs = [each.log for pairs in one.pairs(PRIMARY).values() for each in pairs]
        if logs:
            right.plot(np.exp(np.mean(logs)), y, "|", color="black", markersize=14, markeredgewidth=1.6)
    ends = [0.2, 1.0]
    left.plot(ends, ends, color="0.4", linewidth=1, linestyle="--")
    left.plot(ends, [0.82 * end for end in ends], color="0.6", linewidth=1, linestyle=":")
    left.set_xlabel("updates of the base to the level / of the run")
    left.set_ylabel("the same with the growing average\n(lower is better)")
    right.axvline(1.0, color="0.4", linewidth=1, linestyle="--")
    right.set_yticks(range(len(names)), names)
    right.set_ylim(len(names) - 0.5, -0.5)
    right.set_xscale("log")
    low, high = right.get_xlim()
    ticks = [tick for tick in TICKS if low <= tick <= high]
    right.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    right.minorticks_off()
    right.set_xlabel("updates of the average / of the base\n(lower is better)")
    lines: tuple[dict[str, Any], ...] = (
        {"label": "as many updates", "linestyle": "--", "color": "0.4"},
        {"label": "82 % of them, as in the paper", "linestyle": ":", "color": "0.6"},
    )
    shapes = [
        style.mark_key(workload.removeprefix("mini_"), marker=marker, color=colour, markersize=6)
        for workload, (colour, marker) in looks.items()
    ]
    keys = [
        *shapes,
        style.mark_key("hollow: averages itself", marker="o", color="0.3", markerfacecolor="white", markersize=6),
        style.mark_key("mean over workloads", marker="|", color="black", markersize=12, markeredgewidth=1.6),
        *(Line2D([], [], linewidth=1, **line) for line in lines),
    ]
    style.legend_below(figure, [left, right], keys=keys)
    return figure
