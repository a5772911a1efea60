"""Figures from run logs."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import curves, style
from analysis.curves import Unit
from analysis.logs import Logs
from analysis.speedup import Speedup

LABEL = {"steps": "updates", "seconds": "submission time"}


def learning_curves(logs: Logs, targets: pd.DataFrame, best: pd.DataFrame, baseline: str, unit: Unit) -> Figure:
    """One panel per workload: the validation metric, a line per submission, the target dashed.

    Lines are means over studies (the best trial of each), bands go from the lowest to the highest. A dot marks the mean
    of the steps (or seconds) to target; a submission of which a study missed the target gets a cross at its end
    instead, and a line that counts the misses.

    Args:
        logs, targets, best: of `logs.read`, `targets.resolve` and `to_target.studies`.
        unit: of the horizontal axis.
    """
    looks = style.looks(best["submission"], baseline)
    figure, axes = style.panels(len(targets))
    of_runs = curves.by_folder(logs, targets)
    hours = unit == "seconds" and best["last_seconds"].max() > 7200
    scale, label = (
        (3600.0, f"{LABEL[unit]} / h") if hours else (1.0, LABEL[unit] + (" / s" if unit == "seconds" else ""))
    )
    for axis, (workload, target) in zip(axes, targets.iterrows()):
        here = best[best["workload"] == workload]
        for name, (colour, line) in looks.items():
            mine = here[here["submission"] == name]
            if mine.empty:
                continue
            runs = [of_runs[folder] for folder in mine["folder"]]
            x, mean, low, high = curves.band(runs, unit)
            if not len(x):  # nothing but NaN
                axis.plot([], [], color=colour, linestyle=line, label=name)
                continue
            x = x / scale
            axis.plot(x, mean, color=colour, linestyle=line, label=name)
            if len(runs) > 1:
                axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            if mine["reached"].all():
                reached = (mine[unit].mean() / scale, target["target"])
                axis.plot(*reached, "o", color=colour, markersize=6, markeredgecolor="white", zorder=5)
            else:
                axis.plot(x[-1], mean[-1], "X", color=colour, markersize=7, markeredgecolor="white", zorder=5)
        axis.annotate(f"target {target['target']:g}", (0.01, target["target"]), xycoords=("axes fraction", "data"),
                      xytext=(0, 2), textcoords="offset points", fontsize=7, color="0.35")  # fmt: skip
        _list_misses(axis, here, looks, target["lower"])
        axis.axhline(target["target"], color="0.35", linestyle=(0, (4, 3)), linewidth=1, zorder=1)
        axis.set_ylim(*curves.interesting_range(here, of_runs, target["lower"], target["target"]))
        axis.set(
            title=workload,
            xlabel=label,
            ylabel=f"validation {target['metric'].replace('mean_average_precision', 'mAP')}",
        )
    style.legend_below(figure, axes)
    return figure


def _list_misses(axis: Axes, here: pd.DataFrame, looks: dict[str, tuple[str, str]], lower: bool) -> None:
    """Who missed the target how often, in the corner that learning curves leave free."""
    misses = (~here["reached"]).groupby(here["submission"]).agg(["sum", "size"])
    lines = [(name, f"{name}: {m}/{n} missed") for name, m, n in misses.itertuples() if m]
    if len(lines) > 4:  # they would hide the curves
        lines = [("", f"{len(lines)} of {len(misses)} submissions missed it")]
    for i, (name, text) in enumerate(lines):
        colour = looks[name][0] if name else "0.35"
        y = 0.97 - 0.09 * i if lower else 0.04 + 0.09 * (len(lines) - 1 - i)
        axis.text(0.98, y, text, transform=axis.transAxes, fontsize=7.5, color=colour, ha="right",
                  va="top" if lower else "bottom", bbox={"facecolor": "white", "alpha": 0.7, "pad": 1, "linewidth": 0},
                  zorder=6)  # fmt: skip


def performance_profiles(profile: pd.DataFrame, scores: pd.Series, baseline: str | None) -> Figure:
    """rho(tau) of every submission, the best first in the legend with its score."""
    looks = style.looks(profile.index, baseline)
    figure, (axis,) = style.panels(1, size=(6.5, 3.6))
    for name in scores.index:
        colour, line = looks[name]
        axis.step(profile.columns, profile.loc[name], where="post", color=colour, linestyle=line,
                  label=f"{scores[name]:.4f}  {name}")  # fmt: skip
    axis.set(xlim=(1, 4), ylim=(-0.02, 1.02), xlabel="τ: time to target / time of the fastest submission")
    axis.set_ylabel("share of workloads reached within τ")
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title="score")
    return figure


def speedups(results: dict[str, Speedup], baseline: str, unit: Unit = "seconds") -> Figure:
    """Ratios of time to target with their 95 % intervals, per workload and over all; hollow where misses bound them."""
    looks = style.looks([*results, baseline], baseline)
    names = sorted({name for result in results.values() for name in result.workloads.index})
    rows = [*names, "all workloads"]
    height = 0.16 + 0.13 * len(results)
    figure, (axis,) = style.panels(1, size=(6.0, height * len(rows) + 0.4))
    offsets = np.linspace(-0.25, 0.25, len(results)) if len(results) > 1 else [0.0]
    for offset, (name, result) in zip(offsets, results.items()):
        colour, marker = looks[name][0], style.MARKERS[looks[name][1]]
        axis.plot([], [], marker, color=colour, markersize=5, label=name)
        for y, row in enumerate(rows):
            if row == "all workloads":
                ratio, (low, high), bound = result.ratio, result.over_studies, result.bound
            elif row in result.workloads.index:
                ratio, low, high, bound = result.workloads.loc[row, ["ratio", "low", "high", "bound"]]
            else:
                continue
            axis.plot([low, high], [y + offset] * 2, color=colour, linewidth=1.2)
            inside = "white" if bound else colour
            axis.plot(ratio, y + offset, marker, color=colour, markersize=5, markerfacecolor=inside)
            arrow = {">=": " →", "<=": "← ", "?": " ?"}.get(bound, "")
            side = -1 if bound == "<=" else 1
            edge = ratio if np.isnan(low) else (low, high)[side > 0]
            axis.annotate(arrow, (edge, y + offset), xytext=(side * 3, 0), textcoords="offset points", fontsize=8,
                          color=colour, va="center", ha="left" if side > 0 else "right")  # fmt: skip
    axis.axvline(1, color="0.35", linewidth=1, linestyle=(0, (4, 3)))
    axis.axhline(len(names) - 0.5, color="0.8", linewidth=0.8)
    axis.set_yticks(range(len(rows)), rows)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    ticks = [t for t in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.5, 2, 3, 4) if low <= t <= high]
    if high / low > 4:
        ticks = [t for t in ticks if t not in (0.3, 0.6, 0.7, 0.9, 1.1, 1.2)]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    what = "time" if unit == "seconds" else "steps"
    axis.set_xlabel(f"{what} to target relative to {baseline} (hollow: bounded by misses)")
    style.legend_below(figure, [axis])
    return figure
