"""Figures and a table of the horizon: how much of training an average covers, and by which parts."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures import panels, style
from analysis.measures import horizon
from analysis.measures.lead import Leads
from analysis.text import markdown, number
from weight_averaging.errors import UsageError

_PARTS = {"window": "averaging_window", "decay": "averaging_decay"}


def against_horizon(rows: pd.DataFrame, baseline: str, targets: pd.DataFrame, y: str, line: str, x: str) -> Figure:
    """y against the horizon as a share of training, or in updates.

    A parabola goes over all runs of a workload. There is none for lines told apart by another hyperparameter than the
    window.
    """
    labels = [
        _parts(base, h) if line == "part" else _with(base, h, line) for base, h in zip(rows["base"], rows["hparams"])
    ]
    steps = rows["workload"].map(targets["step_hint"])
    lengths = [horizon.schedule_length(h, t) for h, t in zip(rows["hparams"], steps)]
    rows = rows.assign(line=labels, x=rows["horizon"] * (lengths if x == "updates" else 1.0))
    label = "updates averaged over" if x == "updates" else "horizon: share of training averaged over"
    if y == "gain":  # the baseline's own is zero
        rows = rows[rows["base"] != baseline]
    percent = x == "share"
    return panels.against(
        rows, baseline, targets, y, label, "line", percent=percent, parabola=line == "part" and percent
    )


def _parts(base: str, hparams: dict[str, Any]) -> str:
    parts = [f"{name}={hparams[full]:g}" for name, full in _PARTS.items() if full in hparams]
    return ", ".join([base, *parts])


def _with(base: str, hparams: dict[str, Any], name: str) -> str:
    return f"{base}, {name.replace('_', ' ')} {hparams[name]:g}" if name in hparams else base


def heatmap(rows: pd.DataFrame, targets: pd.DataFrame, y: str) -> Figure:
    """A panel per workload: interval across, window or decay upwards.

    A cell has the mean over seeds. Where a seed missed the target, it has the number of misses.

    Raises:
        UsageError: no run has an interval.
    """
    rows = rows[["averaging_interval" in h for h in rows["hparams"]]]
    if rows.empty:
        raise UsageError("a heatmap needs runs with an averaging_interval, and there is none")
    part = next(name for name in _PARTS.values() if any(name in h for h in rows["hparams"]))
    rows = rows.assign(
        interval=[h["averaging_interval"] for h in rows["hparams"]], part=[h[part] for h in rows["hparams"]]
    )
    figure, axes = style.panels(len(targets), size=(3.4, 2.6))
    for axis, (workload, target) in zip(axes, targets.iterrows()):
        here = rows[rows["workload"] == workload]
        cells = here.groupby(["part", "interval"])[y]
        table = cells.mean().unstack()
        misses = cells.agg(lambda seeds: np.isinf(seeds).sum()).unstack().reindex_like(table).to_numpy(dtype=float)
        values = np.where(misses > 0, np.nan, table.to_numpy(dtype=float))
        lower = panels.better_is_lower(target, y)
        low, high = np.nanmin(values, initial=np.inf), np.nanmax(values, initial=-np.inf)
        largest = max(abs(low), abs(high), 1e-9) if low <= high else 1e-9
        if y == "gain" and high > 0:  # tell the gains apart, not the losses
            low, largest = max(low, -high), high
        colours = axis.imshow(values, origin="lower", aspect="auto", cmap="viridis_r" if lower else "viridis")
        if low < high:
            colours.set_clim(low, high)
            bar = figure.colorbar(colours, ax=axis, label=panels.labelled(panels.describe(y, target), lower))
            bar.ax.yaxis.set_inverted(lower)  # the best on top
        axis.set_xticks(range(table.shape[1]), [f"{float(name):g}" for name in table.columns])
        axis.set_yticks(range(table.shape[0]), [f"{float(name):g}" for name in table.index])
        axis.grid(False)
        decimals = 0 if y in ("steps", "seconds") else max(1, 1 - int(np.floor(np.log10(largest))))
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = "white" if (value > (low + high) / 2) == lower else "black"
                axis.text(j, i, f"{value:.{decimals}f}", ha="center", va="center", fontsize=7, color=colour)
            elif misses[i, j] > 0:
                axis.text(j, i, f"{misses[i, j]:.0f} missed", ha="center", va="center", fontsize=6, color="0.4")
        axis.set(title=str(workload), xlabel="interval (updates)", ylabel=part.removeprefix("averaging_"))
    figure.supxlabel("cells: mean over seeds, or how many seeds missed the target", fontsize=8)
    return figure


def optima(rows: pd.DataFrame, baseline: str, targets: pd.DataFrame, y: str, line: str) -> str:
    """Per workload the parabola's best horizon with its interval, the best run of the grid, and the baseline.

    If `line` names a hyperparameter, there is a row for each of its values.
    """
    rows = rows.assign(value=[h.get(line, np.nan) for h in rows["hparams"]])
    table = []
    for workload, target in targets.iterrows():
        for value, here in rows[rows["workload"] == workload].groupby("value", dropna=False):
            row = {"workload": workload} | ({} if line == "part" else {line.replace("_", " "): f"{value:g}"})
            table.append(row | _optimum(here, baseline, target, y, in_updates=line != "part"))
    return markdown(pd.DataFrame(table))


def _optimum(here: pd.DataFrame, baseline: str, target: pd.Series, y: str, in_updates: bool) -> dict[str, str]:
    averaged = here.dropna(subset="horizon")
    lower = panels.better_is_lower(target, y)
    found = horizon.optimum(averaged, "horizon", y, lower)
    means = averaged.groupby("horizon")[y].mean().replace(np.inf, np.nan).dropna()
    best = means.sort_values(ascending=lower, kind="stable").head(1)
    row = {
        "measure": panels.describe(y, target),
        "best horizon": "-" if found is None else f"{found.best:.1%}",
        "95 %": "-" if found is None or np.isnan(found.low) else f"{found.low:.1%} to {found.high:.1%}",
        "fitted over": "-" if found is None else f"{found.ends[0]:.1%} to {found.ends[1]:.1%}",
    }
    if in_updates:
        length = horizon.schedule_length(here["hparams"].iloc[0], target["step_hint"])
        row["in updates"] = "-" if found is None else f"{found.best * length:.0f}"
        if found is not None and not np.isnan(found.low):
            row["in updates"] += f" ({found.low * length:.0f} to {found.high * length:.0f})"
    row["best of the grid"] = " ".join(f"{number(v, _form(y))} at {x:.1%}" for x, v in best.items()) or "-"
    if y != "gain":  # the baseline's own is zero
        raw = here.loc[here["horizon"].isna(), y]
        missed = f" ({np.isinf(raw).sum()} missed)" if np.isinf(raw).any() else ""
        row[baseline] = number(raw[~np.isinf(raw)].mean(), _form(y)) + missed
    if y in ("steps", "seconds"):
        row["missed"] = f"{int(np.isinf(averaged[y]).sum())} of {len(averaged)}"
    return row


def _form(y: str) -> str:
    return ".0f" if y in ("steps", "seconds") else ".4f"


def data(whole: pd.DataFrame, part: pd.DataFrame, until: float) -> pd.DataFrame:
    """One row per run: where it stands, the hyperparameters that differ, and what it reached, in all and by the share
    `until`. Updates to the target are at the first evaluation there, and as interpolated crossing.

    Args:
        whole, part: of `horizon.measure`, of all and of that share.
    """
    every = [dict(h) for h in whole["hparams"]]
    names = [name for name in dict.fromkeys(name for h in every for name in h) if len({h.get(name) for h in every}) > 1]
    table = whole[["workload", "base", "study"]].rename(columns={"base": "submission", "study": "seed"})
    for name in names:
        table[name] = [h.get(name) for h in every]
    table["horizon"] = whole["horizon"].round(6)
    table["steps_to_target"] = whole["steps"].replace(np.inf, np.nan)
    table["crossed"] = whole["crossed_steps"].round(2).replace(np.inf, np.nan)
    table["final"] = whole["final"].round(7)
    for name, rows in (("", whole), (f"_by_{until:g}", part)):
        table[f"best{name}"], table[f"gain{name}"] = rows["best"].round(7), rows["gain"].round(7)
    return table.sort_values([*table.columns], ignore_index=True)


def leads(table: Leads, baseline: str, targets: pd.DataFrame) -> Figure:
    """The ratios of `horizon.leads`: a line for each share of the baseline's training."""
    figure, (axis,) = style.panels(1, size=(5.0, 3.4))
    for (share, ratios), colour, marker in zip(table.ratio.items(), style.COLOURS[1:], "os^vD"):
        label = f"to the score of {baseline} at {share:.0%} of training"
        axis.plot(ratios.index, ratios, marker=marker, color=colour, label=label, markersize=4)
    axis.axhline(1.0, color=style.COLOURS[0], linewidth=1, label=baseline)
    style.log_ticks(axis, percent=True)
    axis.set_ylim(top=1.5)  # far longer horizons only lose
    axis.set(
        title=f"geometric mean over {len(targets)} workloads" if len(targets) > 1 else str(targets.index[0]),
        xlabel="horizon: share of training averaged over",
        ylabel=panels.labelled(f"updates / {baseline}'s", lower=True),
    )
    style.legend_below(figure, [axis])
    return figure


def leads_table(table: Leads) -> str:
    """`horizon.leads` as text, with the intervals."""
    cells = table.shown()
    cells.index = pd.Index([f"{middle:.3g}" for middle in cells.index], name="horizon")
    return markdown(cells.reset_index())
