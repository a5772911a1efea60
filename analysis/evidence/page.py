"""The page of the evidence, made of the numbers by seed alone: README.md and its figures in a folder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.evidence import conclusions, curves, figures, lengths, made_of, ratios, schedules, summaries
from analysis.evidence.conclusions import Conclusion
from analysis.evidence.curves import Line
from analysis.evidence.data import RAW, Evidence, Run
from analysis.evidence.summaries import CONSTANT, DECAY, MOMENTS, PAPERS, PRIMARY
from analysis.figures import style
from analysis.text import markdown
from weight_averaging.atomic_file import replacing
from weight_averaging.words import between, counted

PLANNED = {"A": "the suite at its own length, 10 seeds",
           "B": "ten times the schedule, flights twice, without translation, 3 seeds",
           "C": "thirty times, language model and graphs, 3 seeds", "D": "schedules, 3 seeds",
           "E": "batch times 4 and a quarter, 3 seeds", "F": "optimizers at five rates, 5 seeds"}  # fmt: skip
CARD = {"nadamw": RAW, "lawa": PAPERS, "ema": "ema_1", "growing": PRIMARY}
# Quotients of the mean updates to the targets, in the result files of the paper's authors.
PAPERS_FILE = Path(__file__).resolve().parents[2] / "docs/results/leaderboard_a100/paper_ratios.csv"
OF_CURVES = (
    "Lines are means over seeds, bands go from the lowest seed to the highest. Where all seeds reach the target, a bar "
    "marks the mean of the updates at which they do.\n"
)
HEAD = """# Evidence, by the rules written before it

The [rules](../rules.md), second part, say what is run, how it is measured and what counts as confirmed. Every number
and figure here is made from the evaluations by seed in [data](data/runs.csv) by one command:

    python -m scripts.evidence_page

`python -m scripts.evidence` makes the runs. Each trains once and tracks fourteen averages along. The raw weights, the
growing average of share .15 and LAWA of 1 % are evaluated 100 times a run, the others at every second to tenth of
these evaluations. That departs from section 7 of the rules: evaluating all would have taken four times as long as
training. Runs at a constant rate have half as many. An average is compared with the raw weights at its own evaluations.
So columns of unlike grids (EMA and "follows the rate" have half as many as the two before them) are held against 1, not
against each other.
"""


def write(evidence: Evidence, folder: Path) -> list[Path]:
    """README.md and figures; what no run bears upon is left out and named. Returns what was written."""
    drawn = conclusions.all_of(evidence)
    decay, constant = evidence.of("A", DECAY), evidence.of("A", CONSTANT)
    parts = [HEAD, _status(evidence, drawn)]
    made: list[Path] = []

    def figure(name: str, drawing: figures.Figure, about: str) -> None:
        made.extend(style.save(drawing, folder / name, kinds=["png"]))
        parts.append(f"![{about}]({name}.png)\n")

    parts += ["## What holds\n", _table(drawn), ""]
    if decay:
        primary = summaries.to_target(decay, PRIMARY)
        figure("forest", figures.forest(drawn, primary.workloads), "Ratios of updates with their intervals")
        parts += ["## To the target\n", _to_target(decay), ""]
        shown = [Line(decay, name) for name in (RAW, PRIMARY, PAPERS) if name == RAW or _has(decay, name)]
        figure("curves", curves.learning_curves(shown), "Learning curves, raw and averaged")
        parts.append(OF_CURVES)
        parts += ["## Along the way\n", _along(decay), "", _along_each(decay, PRIMARY), ""]
        figure("along", figures.along_the_way(decay), "Ratios at what the raw run has by a share of training")
        parts += ["## At the end\n", _final(decay, "cosine to zero"), ""]
        if constant:
            parts += ["## Six variants\n", _variants(decay, constant), "", _final(constant, "constant rate"), ""]
            parts += [_final(constant, "constant rate", decay), ""]
            there = {workload: mine for workload, mine in decay.items() if workload in constant}
            names = [name for name in (RAW, PAPERS, PRIMARY) if name == RAW or _has(constant, name)]
            lines = [Line(there, RAW, "decayed,", "--"), *(Line(constant, name, "constant rate,") for name in names)]
            figure("constant", curves.learning_curves(lines), "Learning curves at a constant rate, and with decay")
            parts.append(OF_CURVES)
        if table := schedules.table(evidence):
            parts += ["## Schedules\n", table, ""]
        if several := lengths.of(evidence):
            parts += ["## Longer runs\n", lengths.table(several), ""]
            figure("lengths", lengths.by_place(several), "Ratios against the place of the target, by length of the run")
        parts += ["## How long the window should be\n", _windows(evidence), ""]
        every = {part: runs for part in lengths.PARTS if (runs := evidence.of(part, DECAY))}
        figure("best_window", figures.best_window(every), "The best window over the elapsed updates")
        figure("growing_over_best", figures.growing_over_best(decay), "The growing average over the best fixed window")
        parts.append(
            "The best of six windows is chosen in hindsight, for each seed and share. Both are evaluated every 5 % of "
            "training here, interpolated, with no running median.\n"
        )
    parts += ["## What was run\n", made_of.ran(evidence), "", made_of.rates_tried(evidence)]
    path = folder / "README.md"
    with replacing(path) as file:
        file.write(("\n".join(parts).rstrip() + "\n").encode())
    return [path, *made]


def _status(evidence: Evidence, drawn: Sequence[Conclusion]) -> str:
    counts = []
    for part in PLANNED:
        here = [run for run in evidence.runs if run.key[0] == part]
        if here:
            by = {(run.key[1], run.key[2]) for run in here}
            seeds = [sum(run.key[1:3] == key for run in here) for key in by]
            counts.append(f"{part}: {counted(len(here), 'run')}, {between(min(seeds), max(seeds), 'seed')} each")
    missing = [f"{part} ({what})" for part, what in PLANNED.items() if part not in evidence.parts()]
    text = f"Run so far: {'; '.join(counts)}. "
    text += f"Not run: {', '.join(missing)}." if missing else "Every part has runs."
    if not drawn or not all(one.enough for one in drawn):
        text = (
            "**Unfinished.** What is marked so below has fewer runs than the rules ask for, and decides nothing: "
            f"{summaries.ENOUGH_SEEDS} seeds on all eight workloads of A, three of B. Of A the rules plan ten: from "
            f"{summaries.ENOUGH_SEEDS} on there is a word, which the others may change.\n\n{text}"
        )
    return f"{text}\n"


def _table(drawn: Sequence[Conclusion]) -> str:
    if not drawn:
        return "Nothing yet."
    rows = [
        {
            "": one.number, "conclusion": one.claim,
            "now": f"**{one.word}**" if one.enough else f"unfinished ({one.word} so far)",
            "measured": one.measured, "before": f"[{one.before}]({one.page})",
        }
        for one in drawn
    ]  # fmt: skip
    return markdown(pd.DataFrame(rows))


def _to_target(runs: dict[str, list[Run]]) -> str:
    shown = {name: found for name in figures.ALONG if _has(runs, name) for found in [summaries.to_target(runs, name)]}
    theirs = pd.read_csv(PAPERS_FILE).set_index(["submission", "workload"])["ratio"]
    rows = []
    for workload, mine in runs.items():
        level = ratios.target(mine)
        steps = [ratios.crossed(run, RAW, level) for run in mine]
        met = [step for step in steps if np.isfinite(step)]
        raw = f"{np.mean(met):.0f} ({len(met)} of {len(steps)} reach it)" if met else "never"
        cells = {figures.ALONG[name]: found.workloads[workload].shown() for name, found in shown.items()}
        given = [theirs.get((name, workload.removeprefix("mini_"))) for name in ("lawa", "ema")]
        paper = " and ".join("-" if ratio is None else f"{ratio:.2f}" for ratio in given)
        place = f"{mine[0].facts['target_share']:.0%}"
        rows.append(
            {"workload": workload, "target at": place, "n": str(len(mine)), "raw updates": raw, **cells}
            | {"the paper's LAWA, EMA": paper}
        )
    for title, pick in (("this suite", "suite"), ("any workload", "any"), ("any, without misses", "whole")):
        cells = {
            figures.ALONG[name]: (one.shown() if (one := getattr(found, pick)) is not None else "-")
            for name, found in shown.items()
        }
        rows.append({"workload": f"**{title}**", "n": str(sum(map(len, runs.values()))), "raw updates": "", **cells})
    note = (
        "Updates to the validation target over those of the raw weights of the same run. `>=`: the average missed in "
        "some run, `<=`: the raw weights did, `?`: both; a miss counts with the whole run. `target at`: the share of "
        "training at which the paper's baseline reaches the official target. In the last column are the quotients of "
        "the mean updates in the result files of the paper's authors, for the large twin of the workload.\n\n"
    )
    return note + markdown(pd.DataFrame(rows).fillna(""))


def _along(runs: dict[str, list[Run]]) -> str:
    rows = []
    for name in (name for name in figures.ALONG if _has(runs, name)):
        found = {share: summaries.by_share(runs, name, share) for share in ratios.SHARES}
        cells = {f"{share:.0%}": one.any.shown() if one is not None else "-" for share, one in found.items()}
        rows.append({"any workload": figures.ALONG[name], **cells})
    return (
        "Updates to the best that the raw weights have by a share of training, over theirs; geometric mean over "
        "workloads and the interval for workloads like these.\n\n" + markdown(pd.DataFrame(rows))
    )


def _along_each(runs: dict[str, list[Run]], name: str) -> str:
    found = {share: summaries.by_share(runs, name, share) for share in ratios.SHARES}
    rows = [
        {figures.ALONG[name]: workload, "n": str(len(mine))}
        | {f"{share:.0%}": one.workloads[workload].shown() if one else "-" for share, one in found.items()}
        for workload, mine in runs.items()
    ]
    return markdown(pd.DataFrame(rows))


def _final(runs: dict[str, list[Run]], what: str, decay: dict[str, list[Run]] | None = None) -> str:
    """Differences to the raw weights of the same runs, or to those that the same seeds have with decay."""
    names = [name for name in figures.ALONG if _has(runs, name)]
    found = {name: summaries.differences(runs, name, decay) for name in names}
    raw, head = (
        ("raw", "Average minus raw") if decay is None else ("decayed", "Average minus the raw weights of a decayed run")
    )
    rows = []
    for workload, mine in runs.items():
        if any(workload not in found[name] for name in names):
            continue
        seeds = {run.key[3] for run in mine}
        against = mine if decay is None else [run for run in decay[workload] if run.key[3] in seeds]
        rows.append(
            {
                f"final metric, {what}": f"{workload} ({mine[0].facts['metric']})",
                "n": str(len(against)),
                raw: f"{np.mean([run.final(RAW) for run in against]):.5g}",
                "margin": f"{summaries.MARGINS[workload]:g}",
            }
            | {figures.ALONG[name]: found[name][workload].shown() for name in names}
        )
    return f"{head}, paired by seed; more is better whatever the metric.\n\n{markdown(pd.DataFrame(rows))}"


def _variants(decay: dict[str, list[Run]], constant: dict[str, list[Run]]) -> str:
    rows = []
    for title, runs in (("", decay), ("_no_decay", constant)):
        for name, average in CARD.items():
            there = {w: mine for w, mine in runs.items() if w in decay and average in [RAW, *mine[0].averages]}
            pairs = {
                workload: [
                    ratios.pair(run, average, ratios.target(decay[workload]), baseline)
                    for run in mine
                    for baseline in decay[workload]
                    if baseline.key[3] == run.key[3]
                ]
                for workload, mine in there.items()
            }
            pairs = {workload: given for workload, given in pairs.items() if given}
            if not pairs:
                continue
            found = ratios.summary(pairs)
            reach = sum(not one.missed for given in pairs.values() for one in given)
            best = {w: f"{np.mean([run.final(average) for run in mine]):.4g}" for w, mine in there.items()}
            ratio = "1" if (name, title) == ("nadamw", "") else found.any.shown()
            rows.append(
                {
                    "variant": f"{name}{title}",
                    "updates over nadamw's": ratio,
                    "reach it": f"{reach} of {found.any.seeds}",
                }
                | {w.removeprefix("mini_"): best.get(w, "-") for w in decay}
            )
    return (
        "Each schedule at its own tuned rate; LAWA and EMA of 1 %, the growing average of 15 %. Ratios are of updates "
        "to the target, over workloads; then the final validation metric, mean over seeds.\n\n"
        + markdown(pd.DataFrame(rows))
    )


def _windows(evidence: Evidence) -> str:
    rows = []
    for part in lengths.PARTS:
        runs = evidence.of(part, DECAY)
        for moment in MOMENTS if runs else ():
            optima = summaries.best_windows(runs, moment)
            cells = {
                workload.removeprefix("mini_"): f"{one.best:.1%} ({one.low:.1%} to {one.high:.1%})"
                if np.isfinite(one.low)
                else f"{one.best:.1%}"
                for workload, one in optima.items()
            }
            middle = summaries.common(optima) if len(optima) > 1 else None
            mean = percent(*middle) if middle else "-"
            rows.append({"part": part, "after": f"{moment:.0%}", **cells, "over workloads": mean})
    return (
        "The LAWA window that is best at that moment, as a share of the updates so far: the optimum of a parabola in "
        f"its logarithm, over windows of up to {summaries.LONGEST:.0%}. An optimum at an end of the range counts "
        "with that end.\n\n" + markdown(pd.DataFrame(rows).fillna("-"))
    )


def percent(value: float, low: float, high: float) -> str:
    """A share with its interval, which ends at all of it at the latest."""
    high = high if np.isnan(high) else min(high, 1.0)
    return f"{value:.1%} ({low:.1%} to {high:.1%})" if np.isfinite(low + high) else f"{value:.1%}"


def _has(runs: dict[str, list[Run]], name: str) -> bool:
    return all(name in run.averages for mine in runs.values() for run in mine)
