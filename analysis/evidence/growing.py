"""The picture of docs/growing.md: what the growing average is made of, and what it does in runs of the evidence."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from analysis.evidence.data import RAW, Run
from analysis.figures import style
from weight_averaging.averages import FollowsRate, Growing

SHARE, SNAPSHOTS = 0.15, 1000  # of a run
AT = {0.1: style.COLOURS[1], 0.5: style.COLOURS[2], 0.9: style.COLOURS[5]}
FROM = 0.1  # the first share of training that the curves show
LINES: dict[str, Literal["-", ":"]] = {"growing_15": "-", "follows_rate_15": ":"}
SHOWN = {
    RAW: ("latest weights", style.COLOURS[0], "-"),
    "lawa_1": ("LAWA of 1 %, fixed", style.COLOURS[6], "-."),
    "growing_15": ("growing, 15 % of the updates so far", style.COLOURS[4], LINES["growing_15"]),
    "follows_rate_15": ("growing, follows the rate", style.COLOURS[3], LINES["follows_rate_15"]),
}


def weights(name: str, rates: Sequence[float]) -> np.ndarray:
    """Of the snapshots with these learning rates, in shares of the top one, times `SNAPSHOTS`."""
    if name == "growing_15":
        return SNAPSHOTS * np.array(Growing(share=SHARE).coefficients(len(rates)))
    left, found = 1.0, []
    for weight in reversed(FollowsRate(share=SHARE, top_rate=1.0).weights(rates)):
        found.append(left * weight)
        left *= 1.0 - weight
    return SNAPSHOTS * np.array([left, *reversed(found)])


def picture(rates: Sequence[float], runs: Sequence[Run]) -> Figure:
    """The weights of the snapshots at three moments, and a panel of validation curves for each run.

    Args:
        rates: `SNAPSHOTS` learning rates along training, in shares of the top one.
    """
    figure, (first, *others) = style.panels(1 + len(runs), size=(3.2, 2.5))
    for share, colour in AT.items():
        count = round(share * SNAPSHOTS)
        for name, line in LINES.items():
            first.plot(np.arange(1, count + 1) / SNAPSHOTS, weights(name, rates[:count]), line, color=colour)
    first.set(
        title="Weights of the snapshots",
        xlabel="share of training",
        ylabel="weight / that in a mean\nof the whole run",
        xlim=(0, 1),
    )
    first.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    first.set(yscale="log", ylim=(0.3, 200))
    first.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    first.minorticks_off()
    keys = [Line2D([], [], color=colour, label=f"left: at {share:.0%} of training") for share, colour in AT.items()]
    kinds = {"growing_15": "left: growing, 15 %", "follows_rate_15": "left: follows the rate"}
    keys += [Line2D([], [], color="0.35", linestyle=LINES[name], label=label) for name, label in kinds.items()]
    for axis, run in zip(others, runs, strict=True):
        _curves(axis, run)
    style.legend_below(figure, [first, *others], keys=keys)
    return figure


def _curves(axis: style.Axes, run: Run) -> None:
    seen = []
    for name, (label, colour, line) in SHOWN.items():
        steps, values = run.curve(name)
        share = steps / run.steps
        axis.plot(share, run.sign * values, line, color=colour, label=label, linewidth=1.2)
        seen += list(run.sign * values[share >= FROM])
    room = 0.05 * (max(seen) - min(seen))
    metric, direction = run.facts["metric"], style.direction(run.sign < 0)
    axis.set(
        title=f"{run.facts['workload']}, seed {run.facts['seed']}", xlabel="share of training",
        ylabel=f"validation {metric}\n({direction})", xlim=(FROM, 1), ylim=(min(seen) - room, max(seen) + room),
    )  # fmt: skip
    axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
