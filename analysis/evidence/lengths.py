"""Runs of several lengths side by side: does a longer run gain more, and do late targets gain too?"""

from typing import Literal

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from analysis.evidence import ratios, summaries
from analysis.evidence.data import Evidence, Run
from analysis.evidence.summaries import DECAY, PAPERS, PRIMARY
from analysis.figures import style
from analysis.text import markdown

PARTS = ("A", "B", "C")  # from short to long
AVERAGES = {PRIMARY: "growing, 15 %", PAPERS: "LAWA of 1 %"}
PLACES = (0.5, 0.7, 0.8, 0.9)  # shares of training
LINES: tuple[Literal["--", "-", "-."], ...] = ("--", "-", "-.")  # as PARTS
OVER = "**these workloads**"
NOTE = (
    "Cosine decay to zero over each length, at the rate that is best for that length. Ratios are of updates to the "
    "target, and to what the raw weights have by a share of training, over those of the raw weights. The target of a "
    "longer run is what its raw weights have by the same share of it. At the end: average minus raw, more is better. "
    "By section 9 of the rules translation, which saturates at ten times its length, is left out there. Flights, which "
    "overfit, have twice their own length.\n"
)

Lengths = dict[str, dict[str, list[Run]]]


def of(evidence: Evidence) -> Lengths:
    """The runs with decay by part, of the workloads of longer parts; empty where there is one length alone."""
    found = {part: runs for part in PARTS if (runs := evidence.of(part, DECAY))}
    longer = {workload for part, runs in found.items() if part != PARTS[0] for workload in runs}
    kept = {part: {w: mine for w, mine in runs.items() if w in longer} for part, runs in found.items()}
    return kept if len(kept) > 1 and all(kept.values()) else {}


def table(lengths: Lengths) -> str:
    """A line for each workload, length and average, then the mean over the workloads that have all lengths."""
    rows = []
    for workload in _workloads(lengths):
        for runs in lengths.values():
            if mine := runs.get(workload):
                rows += [_row(workload, {workload: mine}, name) for name in AVERAGES]
    # Lengths are compared on the same workloads alone.
    common = [w for w in _workloads(lengths) if all(w in runs for runs in lengths.values())]
    for runs in lengths.values() if len(common) > 1 else ():
        rows += [_row(OVER, {w: runs[w] for w in common}, name) for name in AVERAGES]
    return f"{NOTE}\n{markdown(pd.DataFrame(rows))}"


def _row(workload: str, runs: dict[str, list[Run]], name: str) -> dict[str, str]:
    facts = next(iter(runs.values()))[0].facts
    one = len(runs) == 1
    times = ", ".join(f"{one:g}" for one in _times(runs))
    cells = {"to the target": _shown(summaries.to_target(runs, name), one)}
    for share in PLACES:
        found = summaries.by_share(runs, name, share)
        cells[f"to {share:.0%}"] = _shown(found, one) if found else "-"
    return {
        "workload": workload,
        "length": f"{times} x",
        "updates": str(facts["steps"]) if one else "",
        "seeds": str(min(map(len, runs.values()))),
        "weights": AVERAGES[name],
        "target at": f"{facts['target_share']:.0%}" if one else "",
        **cells,
        "at the end": summaries.differences(runs, name)[workload].shown() if one else "",
    }


def _shown(found: ratios.Ratios, one: bool) -> str:
    return next(iter(found.workloads.values())).shown() if one else found.any.shown()


def by_place(lengths: Lengths) -> Figure:
    """The ratio against the place of the target: a panel an average, a colour a workload, a line style a length."""
    figure, axes = style.panels(len(AVERAGES), size=(3.6, 2.9))
    workloads = _workloads(lengths)
    looks = dict(zip(lengths, LINES))
    for axis, (name, title) in zip(axes, AVERAGES.items(), strict=True):
        for part, runs in lengths.items():
            for number, workload in enumerate(workloads):
                if workload in runs:
                    points = _along({workload: runs[workload]}, name)
                    colour = style.COLOURS[number % len(style.COLOURS)]
                    width = 1.0 if looks[part] == "--" else 1.8
                    axis.plot(*zip(*points), looks[part], color=colour, linewidth=width)
        axis.axhline(1.0, color="0.5", linewidth=0.8)
        axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.set(title=title, xlabel="to the score of the raw run\nat this share of training")
    axes[0].set_ylabel("updates / the raw run's\n(lower is better)")
    ends = [end for axis in axes for end in axis.get_ylim()]
    for axis in axes:
        axis.set_ylim(min(ends), max(ends))
    keys = [
        Line2D([], [], color=style.COLOURS[number % len(style.COLOURS)], label=workload.removeprefix("mini_"))
        for number, workload in enumerate(workloads)
    ]
    for part, runs in lengths.items():
        times = told(runs)
        label = f"{times} that length" if times else "the suite's own length"
        keys.append(Line2D([], [], color="0.35", linestyle=looks[part], label=label))
    style.legend_below(figure, axes, keys=keys)
    return figure


def _times(runs: dict[str, list[Run]]) -> list[float]:
    """The lengths of these workloads, in suite lengths; that of most comes first."""
    found = [float(mine[0].facts["length"]) for mine in runs.values()]
    return sorted(set(found), key=lambda times: (-found.count(times), times))


def told(runs: dict[str, list[Run]]) -> str:
    """In words, how many times the suite's own length most runs have, and which have another; empty if it is that."""
    most, *others = _times(runs)
    if others:
        names = ", ".join(w.removeprefix("mini_") for w, mine in runs.items() if mine[0].facts["length"] in others)
        return f"{most:g} times ({names}: {', '.join(f'{one:g}' for one in others)})"
    return "" if most == 1 else f"{most:g} times"


def _along(runs: dict[str, list[Run]], name: str) -> list[tuple[float, float]]:
    found = ((share, summaries.by_share(runs, name, share)) for share in ratios.SHARES)
    return [(share, one.any.ratio) for share, one in found if one is not None]


def _workloads(lengths: Lengths) -> list[str]:
    return list(dict.fromkeys(workload for runs in lengths.values() for workload in runs))
