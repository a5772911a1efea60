"""The figures and tables of a study, drawn from its logs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.comparisons.comparison import Study
from analysis.figures import horizon as horizon_figures
from analysis.figures import learning_curves, panels, ratios, shorter_schedules, style
from analysis.measures import gpu_hours, horizon, speedup, to_target
from analysis.measures.curves import Unit
from analysis.reading.logs import Logs
from analysis.report import tables
from weight_averaging.errors import UsageError


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
    shared = study.grid.get(study.baseline, {}) if study.offline else {}
    names = [
        _arm(submission, hparams, {**shared, **study.grid.get(submission, {})})
        for submission, hparams in zip(logs.runs["submission"], logs.runs["hparams"])
    ]
    runs = logs.runs.assign(base=logs.runs["submission"], submission=names)
    return Logs(runs, logs.evaluations, logs.columns, logs.skipped)


def draw(study: Study, logs: Logs, targets: pd.DataFrame, out: Path) -> list[Path]:
    """Write the study's figures as PNG and PDF and its tables as Markdown and CSV. `logs` are of `select`."""
    trials = to_target.trials(logs, targets)
    written = []
    for figure in study.figures:
        options = {key: value for key, value in figure.items() if key not in ("name", "kind")}
        made: Figure | str | pd.DataFrame = _DRAW[figure["kind"]](study, logs, targets, trials, **options)
        if isinstance(made, Figure):
            written += style.save(made, out / figure["name"])
        else:
            written.append(out / f"{figure['name']}.{'md' if isinstance(made, str) else 'csv'}")
            written[-1].parent.mkdir(parents=True, exist_ok=True)
            written[-1].write_text(made + "\n" if isinstance(made, str) else made.to_csv(index=False))
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


def _arms_without(x: str, study: Study, trials: pd.DataFrame) -> list[str]:
    """Of each run its arm but for the hyperparameter x, against which the arms are drawn: a line each."""
    others = {base: {name: values for name, values in grid.items() if name != x} for base, grid in study.grid.items()}
    return [_arm(base, h, others.get(base, {})) for base, h in zip(trials["base"], trials["hparams"])]


def _curves(study: Study, logs: Logs, targets: pd.DataFrame, trials: pd.DataFrame, unit: Unit) -> Figure:
    return learning_curves.learning_curves(logs, targets, to_target.studies(trials), baseline_arm(study, logs), unit)


def _speedup(study: Study, logs: Logs, targets: pd.DataFrame, trials: pd.DataFrame, unit: Unit) -> Figure:
    best, baseline = to_target.studies(trials), baseline_arm(study, logs)
    others = [name for name in dict.fromkeys(best["submission"]) if name != baseline]
    return ratios.speedups(speedup.compare(best, targets, others, baseline, unit), baseline, unit)


def _hours(study: Study, logs: Logs, targets: pd.DataFrame, trials: pd.DataFrame) -> str:
    spent = gpu_hours.gpu_hours(to_target.studies(trials), targets, targets.attrs["gpus"])
    shown = pd.DataFrame(
        {
            "submission": spent.index,
            "hours to the targets": list(gpu_hours.shown(spent).values()),
            "missed": [f"{row['misses']:.0f} of {row['studies']:.0f}" for _, row in spent.iterrows()],
            "workloads without a run": spent["missing"].tolist(),
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
    rows = trials.assign(x=[h.get(x, np.nan) for h in trials["hparams"]], line=_arms_without(x, study, trials))
    return panels.against(rows, study.baseline, targets, y, x, "line")


def _shorter(study: Study, logs: Logs, targets: pd.DataFrame, trials: pd.DataFrame) -> Figure:
    trials = trials.assign(line=_arms_without("schedule_fraction", study, trials))
    return shorter_schedules.against_shorter(logs, targets, study.baseline, trials)


def _on_measured(
    make: Callable[..., Figure | str],
) -> Callable[[Study, Logs, pd.DataFrame, pd.DataFrame, Any], Figure | str]:
    """A figure of the first share `until` of training, of runs that average more or less of it."""

    def draw(
        study: Study, logs: Logs, targets: pd.DataFrame, trials: pd.DataFrame, until: float, **options: Any
    ) -> Figure | str:
        return make(horizon.measure(logs, targets, until), study.baseline, targets, **options)

    return draw


def _leads(study: Study, logs: Logs, targets: pd.DataFrame, trials: pd.DataFrame, show: str) -> Figure | str:
    make = horizon_figures.leads if show == "figure" else horizon_figures.leads_table
    return make(logs, targets, baseline_arm(study, logs))


def _data(study: Study, logs: Logs, targets: pd.DataFrame, trials: pd.DataFrame, until: float) -> pd.DataFrame:
    return horizon_figures.data(logs, targets, until)


_DRAW: dict[str, Callable[..., Figure | str | pd.DataFrame]] = {
    "curves": _curves,
    "speedup": _speedup,
    "hours": _hours,
    "best": _best,
    "sweep": _sweep,
    "shorter": _shorter,
    "horizon": _on_measured(horizon_figures.against_horizon),
    "heatmap": _on_measured(horizon_figures.heatmap),
    "optima": _on_measured(horizon_figures.optima),
    "leads": _leads,
    "data": _data,
}
