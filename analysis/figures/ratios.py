"""Figures of ratios of time (or steps) to target to the baseline's."""

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures import panels, style
from analysis.measures import speedup
from analysis.measures.curves import Unit
from analysis.measures.speedup import Speedup

ALL = "all workloads"
BOUNDS = {
    ">=": "hollow, →: the submission missed targets, the ratio may be larger",
    "<=": "hollow, ←: the baseline missed targets, the ratio may be smaller",
    "?": "hollow, ?: both missed targets, the ratio may be larger or smaller",
}
# How far beyond all ratios an axis goes for the ends of intervals.
FARTHEST = 1.6


def speedups(results: dict[str, Speedup], baseline: str, unit: Unit = "seconds") -> Figure:
    """Ratios of time to target with their 95 % intervals, per workload and over all; hollow where misses bound them.

    Few submissions share one panel; many have one for each workload, in the order of `results`.
    """
    rows = speedup.rows(results).replace({"workload": {"all": ALL}})
    what = "time" if unit == "seconds" else "steps"
    label = panels.labelled(f"{what} to target / {baseline}'s", lower=True)
    workloads = sorted(set(rows["workload"]) - {ALL})
    if len(workloads) > 1:
        workloads.append(ALL)
    rows = rows[rows["workload"].isin(workloads)]
    many = len(results) > style.MANY
    if not many:
        looks = style.looks([baseline, *results], baseline)
        figure, (axis,) = style.panels(1, size=(6.0, (0.16 + 0.13 * len(results)) * len(workloads) + 0.4))
        offsets = np.linspace(-0.25, 0.25, len(results)) if len(results) > 1 else [0.0]
        for offset, name in zip(offsets, results):
            mine = rows[rows["submission"] == name]
            colour, marker = looks[name][0], style.MARKERS[looks[name][1]]
            axis.plot([], [], marker, color=colour, markersize=5, label=name)
            _draw(axis, mine, mine["workload"].map(workloads.index) + offset, colour, marker)
        if ALL in workloads:
            axis.axhline(len(workloads) - 1.5, color="0.8", linewidth=0.8)
        _finish(axis, rows, workloads)
        axis.lines[-1].set_label(baseline)
        axis.set_xlabel(label.replace("\n", " "))
        style.legend_below(figure, [axis], keys=_keys(rows))
        return figure
    names = list(results)
    figure, axes = style.panels(len(workloads), size=(3.0, 0.17 * len(names) + 0.7))
    for axis, workload in zip(axes, workloads):
        here = rows[rows["workload"] == workload]
        _draw(axis, here, here["submission"].map(names.index).astype(float), style.COLOURS[-1], "o")
        place = axis.get_subplotspec()
        _finish(axis, here, names if place is None or place.is_first_col() else [""] * len(names))
        axis.set_title(workload)
        axis.set_xlabel(label, fontsize=8)
    style.legend_below(figure, axes, keys=_keys(rows))
    return figure


def _keys(rows: pd.DataFrame) -> list[Artist]:
    """The legend's entries of intervals, and of the bounds that are drawn."""
    keys: list[Artist] = [Line2D([], [], color="0.35", linewidth=1.2, label="95 % interval")]
    return keys + [
        style.mark_key(said, marker="o", markerfacecolor="white", markersize=5)
        for bound, said in BOUNDS.items()
        if (rows["bound"] == bound).any()
    ]


def _draw(axis: Axes, rows: pd.DataFrame, places: pd.Series, colour: str, marker: str) -> None:
    for y, (ratio, low, high, bound) in zip(places, rows[["ratio", "low", "high", "bound"]].itertuples(index=False)):
        axis.plot([low, high], [y, y], color=colour, linewidth=1.2)
        inside = "white" if bound else colour
        axis.plot(ratio, y, marker, color=colour, markersize=5, markerfacecolor=inside)
        arrow = {">=": " →", "<=": "← ", "?": " ?"}.get(bound, "")
        side = -1 if bound == "<=" else 1
        edge = ratio if np.isnan(low) else (low, high)[side > 0]
        axis.annotate(arrow, (edge, y), xytext=(side * 3, 0), textcoords="offset points", fontsize=8,
                      color=colour, va="center", ha="left" if side > 0 else "right")  # fmt: skip


def _finish(axis: Axes, rows: pd.DataFrame, labels: list[str]) -> None:
    axis.axvline(1, color="0.35", linewidth=1, linestyle=(0, (4, 3)))
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.set_xscale("log")
    # Two studies tell so little that an interval may go on for ever.
    ratios = rows["ratio"].to_numpy(dtype=float)
    ends = np.clip(rows[["low", "high"]].to_numpy(dtype=float), ratios.min() / FARTHEST, ratios.max() * FARTHEST)
    values = np.column_stack([ratios, ends])
    low, high = min(0.93, np.nanmin(values)), max(1.08, np.nanmax(values))
    room = (high / low) ** 0.1  # for the arrows
    low, high = low / room, high * room
    axis.set_xlim(low, high)
    steps = (0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3) if high / low < 1.6 else (0.4, 0.5, 0.6, 0.8, 1, 1.2, 1.5, 2, 3)
    ticks = [t for t in (steps if high / low < 4 else (0.1, 0.2, 0.5, 1, 2, 5, 10, 20)) if low <= t <= high]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
