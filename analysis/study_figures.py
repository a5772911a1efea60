"""The figures and tables of a study, drawn from its logs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import figures, speedup, style, tables, to_target
from analysis.errors import UsageError
from analysis.logs import Logs
from analysis.studies import Study

MISS = "x"


def select(logs: Logs, study: Study) -> Logs:
    """The study's runs, each point of a grid renamed as a submission of its own ("lawa, window=5").

    Raises:
        UsageError: a submission or workload of the study has no run.
    """
    logs = logs.only(study.submissions)
    if study.workloads is not None:
        there = set(logs.runs["workload"])
        if missing := [name for name in study.workloads if name not in there]:
            raise UsageError(
                f"study {study.name}: no run of {', '.join(missing)}; there are {', '.join(sorted(there))}"
            )
        logs = logs.select(logs.runs["workload"].isin(study.workloads))
    names = [
        _arm(submission, hparams, study.grid.get(submission, {}))
        for submission, hparams in zip(logs.runs["submission"], logs.runs["hparams"])
    ]
    runs = logs.runs.assign(base=logs.runs["submission"], submission=names)
    return Logs(runs, logs.evaluations, logs.columns, logs.skipped)


def draw(study: Study, logs: Logs, targets: pd.DataFrame, out: Path) -> list[Path]:
    """Write the study's figures as PNG and PDF and its tables as Markdown. `logs` are of `select`."""
    trials = to_target.trials(logs, targets)
    written = []
    for figure in study.figures:
        options = {key: value for key, value in figure.items() if key not in ("name", "kind")}
        made = _DRAW[figure["kind"]](study, logs, targets, trials, **options)
        if isinstance(made, Figure):
            written += style.save(made, out / figure["name"])
        else:
            written.append(out / f"{figure['name']}.md")
            written[-1].parent.mkdir(parents=True, exist_ok=True)
            written[-1].write_text(made + "\n")
    return written


def baseline_arm(study: Study, logs: Logs) -> str:
    """The name of the baseline in `logs`: of several points of its grid, the one of its search space, else the last."""
    grid = study.grid.get(study.baseline, {})
    arms = logs.runs.loc[logs.runs["base"] == study.baseline].sort_values("trial")["submission"]
    start = _arm(study.baseline, study.points(study.baseline)[0], grid)
    return start if (arms == start).any() else arms.iloc[-1]


def _arm(submission: str, hparams: dict[str, Any], grid: dict[str, list[Any]]) -> str:
    values = {name: hparams[name] for name in grid if name in hparams}
    shown = {name: value if isinstance(value, str) else f"{value:g}" for name, value in values.items()}
    varied = [f"{name.removeprefix('averaging_')}={value}" for name, value in shown.items()]
    return ", ".join([submission, *varied])


def _curves(study: Study, logs: Logs, targets: pd.DataFrame, trials: pd.DataFrame, unit: figures.Unit) -> Figure:
    return figures.learning_curves(logs, targets, to_target.studies(trials), baseline_arm(study, logs), unit)


def _speedup(study: Study, logs: Logs, targets: pd.DataFrame, trials: pd.DataFrame, unit: figures.Unit) -> Figure:
    best, baseline = to_target.studies(trials), baseline_arm(study, logs)
    others = [name for name in dict.fromkeys(best["submission"]) if name != baseline]
    return figures.speedups({name: speedup.compare(best, name, baseline, unit) for name in others}, baseline, unit)


def _hours(study: Study, logs: Logs, targets: pd.DataFrame, trials: pd.DataFrame) -> str:
    hours = speedup.gpu_hours(to_target.studies(trials), targets, targets.attrs["gpus"])
    shown = pd.DataFrame(
        {
            "submission": hours.index,
            "hours to the targets": [
                f"{'>= ' if row['misses'] or row['missing'] else ''}{row['hours']:.3g}" for _, row in hours.iterrows()
            ],
            "missed": [f"{row['misses']:.0f} of {row['studies']:.0f}" for _, row in hours.iterrows()],
            "workloads without a run": hours["missing"].tolist(),
        }
    )
    return tables.markdown(shown)


def _best(study: Study, logs: Logs, targets: pd.DataFrame, trials: pd.DataFrame, which: str) -> str:
    """Mean over studies of the best validation metric of a run, or the final one; of several trials in a study, the
    best."""
    lower = trials["workload"].map(targets["lower"])
    ordered = trials.assign(order=trials[which] * np.where(lower, 1, -1)).sort_values("order", kind="stable")
    groups = ordered.drop_duplicates(to_target.STUDY).groupby(["submission", "workload"])[which]
    cells = {
        key: tables.number(mean, ".4f") + ("" if np.isnan(std) else f" ± {std:.4f}")
        for key, mean, std in zip(groups.mean().index, groups.mean(), groups.std())
    }
    table = pd.Series(cells).unstack().fillna("-")
    metrics = targets["metric"].to_dict()
    table.columns = pd.Index([f"{name} ({metrics[name]})" for name in table.columns])
    return tables.markdown(table.rename_axis("submission").reset_index())


def _sweep(study: Study, logs: Logs, targets: pd.DataFrame, trials: pd.DataFrame, x: str, y: str) -> Figure:
    return _against(study, trials.assign(x=[h.get(x, np.nan) for h in trials["hparams"]]), targets, y, x, "base")


def _horizon(study: Study, logs: Logs, targets: pd.DataFrame, trials: pd.DataFrame, y: str) -> Figure:
    steps = trials["workload"].map(targets["step_hint"])
    rows = trials.assign(x=[horizon_of(h, t) for h, t in zip(trials["hparams"], steps)])
    rows["line"] = [_arm(base, {k: v for k, v in h.items() if k in ("averaging_window", "averaging_decay")},
                         {"averaging_window": [], "averaging_decay": []})
                    for base, h in zip(rows["base"], rows["hparams"])]  # fmt: skip
    return _against(study, rows, targets, y, "horizon: share of training averaged over", "line", parabola=True)


def horizon_of(hparams: dict[str, Any], step_hint: float) -> float:
    """nu * L / T of a run; an EMA counts with the window of the same mean age, L = (1 + beta) / (1 - beta). NaN for one
    that does not average."""
    if "averaging_horizon" in hparams:
        return hparams["averaging_horizon"]
    if "averaging_interval" not in hparams:
        return np.nan
    decay = hparams.get("averaging_decay")
    window = hparams["averaging_window"] if decay is None else (1 + decay) / (1 - decay)
    return hparams["averaging_interval"] * window / step_hint


def _against(
    study: Study, rows: pd.DataFrame, targets: pd.DataFrame, y: str, label: str, line: str, parabola: bool = False
) -> Figure:
    """One panel per workload: y against x, a line for each value of the column `line` (mean over seeds, band from the
    lowest to the highest). Runs without x (a baseline) are a horizontal line. Missed targets are crosses at the top."""
    looks = style.looks(rows[line], study.baseline)
    figure, axes = style.panels(len(targets))
    for axis, (workload, target) in zip(axes, targets.iterrows()):
        here = rows[rows["workload"] == workload]
        for name, (colour, dash) in looks.items():
            mine = here[here[line] == name]
            level = mine.loc[mine["x"].isna(), y].replace(np.inf, np.nan).mean()
            if np.isfinite(level):
                axis.axhline(level, color=colour, linestyle=dash, label=name)
            groups = mine.dropna(subset="x").groupby("x")[y]
            if not len(groups):
                continue
            x, mean = groups.mean().index.to_numpy(dtype=float), groups.mean()
            hit = np.isfinite(mean)
            axis.plot(x[hit], mean[hit], "o", linestyle=dash, color=colour, label=name, markersize=4)
            axis.fill_between(x[hit], groups.min()[hit], groups.max()[hit], color=colour, alpha=0.15, linewidth=0)
            # In axes' coordinates vertically: a miss has no value.
            axis.plot(x[~hit], np.full((~hit).sum(), 0.97), MISS, color=colour, markersize=6,
                      transform=axis.get_xaxis_transform())  # fmt: skip
        if y == "best":
            axis.axhline(target["target"], color="0.35", linestyle=(0, (4, 3)), linewidth=1, zorder=1)
        if parabola:
            _parabola(axis, here, y, target["lower"] or y != "best")
        if (here["x"].dropna() > 0).all():
            style.log_ticks(axis, percent=parabola)
        metric = f"best validation {target['metric']}"
        what = {"best": metric, "steps": "updates to target", "seconds": "seconds to target"}[y]
        axis.set(title=workload, xlabel=label.replace("_", " "), ylabel=what)
    style.legend_below(figure, axes)
    return figure


def _parabola(axis: Axes, rows: pd.DataFrame, y: str, lower: bool) -> None:
    """Least squares of y on log x and its square over all runs, with the best x where the parabola has one inside. Runs
    that missed the target have no steps or seconds and are left out: where many did, the fit flatters."""
    points = rows[["x", y]].replace(np.inf, np.nan).dropna()
    points = points[points["x"] > 0]
    if points["x"].nunique() < 4:
        return
    a, b, c = np.polyfit(np.log(points["x"]), points[y], 2)
    x = np.geomspace(points["x"].min(), points["x"].max(), 100)
    axis.plot(x, a * np.log(x) ** 2 + b * np.log(x) + c, color="0.5", linewidth=1, zorder=1, label="parabola, all runs")
    best = np.exp(-b / (2 * a)) if a else np.nan
    if (a > 0) == lower and x[0] <= best <= x[-1]:
        axis.axvline(best, color="0.5", linewidth=0.8, linestyle=":", zorder=1)
        axis.annotate(f"{100 * best:.2g} %", (best, 0.02), xycoords=("data", "axes fraction"), xytext=(3, 0),
                      textcoords="offset points", fontsize=7.5, color="0.35")  # fmt: skip


_DRAW: dict[str, Callable[..., Figure | str]] = {
    "curves": _curves,
    "speedup": _speedup,
    "hours": _hours,
    "best": _best,
    "sweep": _sweep,
    "horizon": _horizon,
}
