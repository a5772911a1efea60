"""One panel per workload: a measure of runs against one of their settings."""

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import style
from analysis.measures import horizon

MISS = "x"
METRICS = {"mean_average_precision": "mAP", "ssim": "SSIM", "wer": "WER", "bleu": "BLEU"}


def against(
    rows: pd.DataFrame,
    baseline: str,
    targets: pd.DataFrame,
    y: str,
    label: str,
    line: str,
    *,
    percent: bool = False,
    parabola: bool = False,
) -> Figure:
    """Column y against column x, a line for each value of the column `line` (mean over seeds, band from the lowest to
    the highest). Runs without x (a baseline) are a horizontal line. Targets that a seed missed are crosses at the top,
    a row for each line.

    Args:
        rows: of `Measured.trials`, with x and `line`.
        y: best, steps, seconds or gain.
        label: what x is.
        percent: x is a share, shown in percent.
        parabola: draw that through each workload's runs.
    """
    looks = style.looks(rows[line], baseline)
    figure, axes = style.panels(len(targets))
    keys: dict[str, Artist] = {}
    for axis, (workload, target) in zip(axes, targets.iterrows()):
        here = rows[rows["workload"] == workload]
        for row, (name, (colour, dash)) in enumerate(looks.items()):
            mine = here[here[line] == name]
            level = mine.loc[mine["x"].isna(), y].replace(np.inf, np.nan).mean()
            if np.isfinite(level):
                axis.axhline(level, color=colour, linestyle=dash, label=name)
            groups = mine.dropna(subset="x").groupby("x")[y]
            if not len(groups):
                continue
            x, mean = groups.mean().index.to_numpy(dtype=float), groups.mean()
            hit, missed = np.isfinite(mean), np.isinf(mean)
            size = max(4.0, 6.0 - row)  # of several at one place all show
            axis.plot(x[hit], mean[hit], "o", linestyle=dash, color=colour, label=name, markersize=size)
            axis.fill_between(x[hit], groups.min()[hit], groups.max()[hit], color=colour, alpha=0.15, linewidth=0)
            if groups.size().max() > 1 and hit.any():
                keys["band"] = style.band_key("lowest to highest seed")
            if missed.any():
                # In axes' coordinates vertically: a miss has no value.
                axis.plot(x[missed], np.full(missed.sum(), 0.97 - 0.06 * row), MISS, color=colour, markersize=6,
                          transform=axis.get_xaxis_transform())  # fmt: skip
                keys["miss"] = style.mark_key("target missed by a seed or more", marker=MISS)
        if not np.isfinite(here[y]).any():
            axis.set_yticks([])
            axis.text(0.5, 0.4, "target missed throughout", transform=axis.transAxes, ha="center", color="0.35")
        if y == "best":
            style.target_line(axis, target["target"])
        title = str(workload)
        if parabola:
            title += _parabola(axis, here, y, better_is_lower(target, y))
        if len(here["x"].dropna()) and (here["x"].dropna() > 0).all():
            style.log_ticks(axis, percent=percent)
        axis.set(xlabel=label.replace("_", " "), ylabel=labelled(describe(y, target), better_is_lower(target, y)))
        axis.set_title(title, fontsize=10 if len(title) < 32 else 8)
    style.legend_below(figure, axes, keys=keys.values())
    return figure


def better_is_lower(target: pd.Series, y: str) -> bool:
    return bool(target["lower"]) if y == "best" else y != "gain"


def metric(target: pd.Series) -> str:
    """The metric's name, short enough for an axis."""
    return METRICS.get(str(target["metric"]), str(target["metric"]))


def labelled(measure: str, lower: bool) -> str:
    """An axis' label that says which way is better."""
    return f"{measure}\n({style.direction(lower)})"


def describe(y: str, target: pd.Series) -> str:
    return {
        "best": f"best validation {metric(target)}",
        "steps": "updates to target",
        "seconds": "seconds to target",
        "gain": f"{metric(target)} better by",
    }[y]


def _parabola(axis: Axes, rows: pd.DataFrame, y: str, lower: bool) -> str:
    """The fit of `horizon.optimum`, its optimum and, shaded, the interval of that. Words on it for the title."""
    found = horizon.optimum(rows, "x", y, lower)
    if found is None:
        return ""
    x = np.geomspace(*found.ends, 100)
    axis.plot(x, np.polyval(found.curve, np.log(x)), color="0.5", linewidth=1, zorder=1, label="parabola, all runs")
    if not found.ends[0] < found.best < found.ends[1]:
        return ""
    if np.isfinite(found.low):
        axis.axvspan(found.low, found.high, color="0.5", alpha=0.12, linewidth=0, zorder=0, label="its 95 % interval")
    axis.axvline(found.best, color="0.5", linewidth=0.8, linestyle=":", zorder=1, label="its optimum")
    return f", best {100 * found.best:.2g} %"
