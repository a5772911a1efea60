"""Figures from run logs: learning curves and performance profiles."""

import textwrap
from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures import panels, style
from analysis.measures import curves
from analysis.measures.curves import Unit

LABEL = {"steps": "updates", "seconds": "submission time"}


def axis_of(best: pd.DataFrame, unit: Unit) -> tuple[float, str]:
    """What to divide steps or seconds by, and the axis' label: long runs are shown in hours."""
    if unit == "steps":
        return 1.0, LABEL[unit]
    hours = best["last_seconds"].max() > 7200
    return (3600.0, f"{LABEL[unit]} (h)") if hours else (1.0, f"{LABEL[unit]} (s)")


def learning_curves(
    of_runs: dict[str, pd.DataFrame],
    targets: pd.DataFrame,
    best: pd.DataFrame,
    baseline: str,
    unit: Unit,
    ranked: list[str] | None = None,
) -> Figure:
    """One panel per workload: the validation metric, a line per submission, the target dashed.

    Lines are means over studies (the best trial of each), bands go from the lowest to the highest. A bar across the
    target (on a broken line another mark) is at the mean of the steps (or seconds) to it. A submission of which a study
    missed the target has none, and is named above the panel. Of many ranked submissions the first are coloured, the
    others grey, and all are named by their rank.

    Args:
        of_runs, targets, best: of `Measured.curves`, `targets.resolve` and `to_target.studies`.
        unit: of the horizontal axis.
        ranked: the submissions, the best first; None where ranks mean nothing: all are coloured.
    """
    looks = style.looks(ranked or best["submission"], baseline)
    coloured = list(looks) if ranked is None else style.leaders(ranked, baseline)
    many = len(coloured) < len(looks)
    ranks = {name: str(rank) for rank, name in enumerate(ranked or [], start=1)} if many else {}
    labels = {name: f"{ranks.get(name, '')} {name}".strip() for name in looks}
    figure, axes = style.panels(len(targets))
    scale, label = axis_of(best, unit)
    keys: dict[str, Artist] = {}
    for axis, (workload, target) in zip(axes, targets.iterrows()):
        here = best[best["workload"] == workload]
        drawn = sorted(looks, key=lambda name: name in coloured)  # grey below
        for name in drawn:
            mine = here[here["submission"] == name]
            if mine.empty:
                continue
            colour, line = looks[name] if name in coloured else (style.GREY, "-")
            runs = [of_runs[folder] for folder in mine["folder"]]
            x, mean, low, high = curves.band(runs, unit)
            if not len(x):  # nothing but NaN, or no steps
                axis.plot([], [], color=colour, linestyle=line, label=labels[name])
                continue
            x = x / scale
            axis.plot(x, mean, color=colour, linestyle=line, label=labels[name],
                      linewidth=1.5 if name in coloured else 0.8)  # fmt: skip
            if len(runs) > 1 and not many:
                axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
                keys["band"] = style.band_key("lowest to highest study")
            if mine["reached"].all():
                place = (mine[unit].mean() / scale, target["target"])
                size = 1 + (len(drawn) - drawn.index(name)) / len(drawn) / 2  # of two at one place both show
                look = _mark(line, colour, name in coloured)
                axis.plot(
                    *place, **look | {"markersize": size * look["markersize"]}, zorder=5 if name in coloured else 2
                )
                if not many:
                    keys[name] = Line2D([], [], label=labels[name], **look | {"linestyle": line})
                keys["mark"] = style.mark_key(label=f"mean {LABEL[unit]} to target", **_mark("-", "0.35"))
        style.target_line(axis, target["target"])
        axis.set_ylim(*curves.interesting_range(here, of_runs, target["lower"], target["target"]))
        axis.set_xlim(left=0)
        axis.set(xlabel=label, ylabel=panels.labelled(f"validation {panels.metric(target)}", target["lower"]))
        _title(axis, f"{workload}, target {target['target']:g}", here, ranks)
    style.legend_below(figure, axes, [labels[name] for name in ranked or looks], keys.values())
    return figure


def _mark(line: str, colour: str, thick: bool = True) -> dict[str, Any]:
    """The look of the mark at the target: a bar, or another one on a broken line."""
    if line == "-":
        return {"marker": "|", "color": colour, "markersize": 12, "markeredgewidth": 2.2 if thick else 1}
    return {"marker": style.MARKERS[line], "color": colour, "markersize": 6, "markerfacecolor": "white"}


def misses(here: pd.DataFrame, short: dict[str, str]) -> str:
    """Who missed the target, in all studies and in some; with `short` names, which are ranks.

    Args:
        here: rows of `to_target.studies` of one workload.
    """
    missed = (~here["reached"]).groupby(here["submission"]).agg(["sum", "size"])
    whole = [name for name, m, n in missed.itertuples() if m == n]
    part = [(name, f"{m}/{n}") for name, m, n in missed.itertuples() if 0 < m < n]
    if short:
        numbers = sorted(int(short[name]) for name in whole), sorted(int(short[name]) for name, _ in part)
        texts = [style.runs_of_numbers(one) for one in numbers]
    else:
        texts = [", ".join(whole), ", ".join(f"{name} {share}" for name, share in part)]
    said = ["missed: " + texts[0]] if texts[0] else []
    return "; ".join(said + (["missed in some studies: " + texts[1]] if texts[1] else []))


def _title(axis: Axes, title: str, here: pd.DataFrame, short: dict[str, str]) -> None:
    """The panel's title, and below it who missed the target."""
    lines = textwrap.wrap(misses(here, short), 48)
    if len(lines) > 3:  # they would be higher than the panel; the table beside the figure names them
        every = here.groupby("submission")["reached"].agg(["any", "all"])
        some = (every["any"] & ~every["all"]).sum()
        lines = [f"{(~every['any']).sum()} of {len(every)} missed" + (f", {some} more in some studies" if some else "")]
    axis.set_title(title, pad=7 + 9 * len(lines), fontsize=10 if len(title) < 40 else 8)
    axis.annotate("\n".join(lines), (0.5, 1.0), xycoords="axes fraction", xytext=(0, 2), textcoords="offset points",
                  fontsize=7, color="0.35", ha="center", va="bottom")  # fmt: skip


def performance_profiles(profile: pd.DataFrame, scores: pd.Series, baseline: str, unit: Unit) -> Figure:
    """rho(tau) of every submission, the best first in the legend with its score. Coloured profiles that
    are equal are drawn side by side, so that all show."""
    ranked = list(scores.index)
    looks, coloured = style.looks(ranked, baseline), style.leaders(ranked, baseline)
    what = "time" if unit == "seconds" else "steps"
    legend = 1.2 + 0.07 * max(map(len, ranked))  # inches
    figure, (axis,) = style.panels(1, size=(4.2 + legend, max(3.6, 0.22 * len(scores))))
    drawn = [name for name in ranked if name in coloured]
    for name in ranked:
        colour, line = looks[name] if name in coloured else (style.GREY, looks[name][1])
        beside = 0.007 * ((len(drawn) - 1) / 2 - drawn.index(name)) if name in coloured else 0.0
        axis.step(profile.columns, profile.loc[name] + beside, where="post", color=colour, linestyle=line,
                  zorder=3 if name in coloured else 2, label=f"{scores[name]:.4f}  {name}")  # fmt: skip
    axis.set(xlim=(1, 4), ylim=(-0.04, 1.04), xlabel=f"τ: {what} to target / {what} of the fastest submission")
    axis.set_ylabel("share of workloads reached within τ (higher is better)")
    axis.legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), title="score (equal profiles lie side by side)", alignment="left"
    )
    return figure
