"""The figures and tables of a comparison, drawn from its logs."""

from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.comparisons.comparison import Comparison
from analysis.figures import horizon as horizon_figures
from analysis.figures import learning_curves, panels, ratios, shorter_schedules, style
from analysis.measures import gpu_hours, horizon, speedup, to_target
from analysis.measures.curves import Unit
from analysis.measures.to_target import Measured
from analysis.reading.logs import Logs
from analysis.text import markdown, number
from weight_averaging.errors import UsageError


def select(logs: Logs, comparison: Comparison) -> Logs:
    """The comparison's runs, each point of a grid renamed as a submission of its own ("lawa, window=5").

    Raises:
        UsageError: a submission or workload of the comparison has no run.
    """
    logs = logs.only(comparison.submissions)
    if comparison.workloads is not None:
        there = set(logs.runs["workload"])
        if missing := [name for name in comparison.workloads if name not in there]:
            raise UsageError(
                f"comparison {comparison.name}: no run of {', '.join(missing)}; there are {', '.join(sorted(there))}"
            )
        logs = logs.select(logs.runs["workload"].isin(comparison.workloads))
    shared = comparison.grid.get(comparison.baseline, {}) if comparison.offline else {}
    names = [
        _arm(submission, hparams, {**shared, **comparison.grid.get(submission, {})})
        for submission, hparams in zip(logs.runs["submission"], logs.runs["hparams"])
    ]
    runs = logs.runs.assign(base=logs.runs["submission"], submission=names)
    return Logs(runs, logs.evaluations, logs.columns, logs.skipped)


def baseline_arm(comparison: Comparison, logs: Logs) -> str:
    """The name of the baseline in `logs`: of several points of its grid, the one of its search space, else the last."""
    grid = comparison.grid.get(comparison.baseline, {})
    arms = logs.runs.loc[logs.runs["base"] == comparison.baseline].sort_values("trial")["submission"]
    start = _arm(comparison.baseline, comparison.points(comparison.baseline)[0], grid)
    return start if (arms == start).any() else arms.iloc[-1]


def _arm(submission: str, hparams: dict[str, Any], grid: dict[str, list[Any]]) -> str:
    values = {name: hparams[name] for name in grid if name in hparams}
    shown = {name: value if isinstance(value, str) else f"{value:g}" for name, value in values.items()}
    varied = [f"{name.removeprefix('averaging_')}={value}" for name, value in shown.items()]
    return ", ".join([submission, *varied])


def draw(comparison: Comparison, measured: Measured, out: Path) -> list[Path]:
    """Write the comparison's figures as PNG and PDF and its tables as Markdown and CSV.

    Args:
        measured: the runs of `select`.
    """
    drawing = Drawing(comparison, measured)
    written = []
    for figure in comparison.figures:
        options = {key: value for key, value in figure.items() if key not in ("name", "kind")}
        made: Figure | str | pd.DataFrame = getattr(drawing, figure["kind"])(**options)
        if isinstance(made, Figure):
            written += style.save(made, out / figure["name"])
        else:
            written.append(out / f"{figure['name']}.{'md' if isinstance(made, str) else 'csv'}")
            written[-1].parent.mkdir(parents=True, exist_ok=True)
            written[-1].write_text(made + "\n" if isinstance(made, str) else made.to_csv(index=False))
    return written


class Drawing:
    """The figures and tables of one comparison: a method for each of its kinds.

    What several of them are made of is worked out once.
    """

    def __init__(self, comparison: Comparison, measured: Measured) -> None:
        self.comparison, self.measured = comparison, measured
        self.targets, self.baseline = measured.targets, comparison.baseline
        self.arm = baseline_arm(comparison, measured.logs)
        self._until = cache(partial(horizon.measure, measured))
        self._leads = cache(partial(horizon.leads, measured, self.arm))

    def curves(self, unit: Unit) -> Figure:
        return learning_curves.learning_curves(self.measured.curves, self.targets, self.measured.best, self.arm, unit)

    def speedup(self, unit: Unit) -> Figure:
        best = self.measured.best
        others = [name for name in dict.fromkeys(best["submission"]) if name != self.arm]
        times = to_target.submissions(best, unit)
        compared = to_target.interpolated(best)
        found = speedup.compare(compared, times, self.targets, others, self.arm, unit)
        return ratios.speedups(found, self.arm, unit)

    def hours(self) -> str:
        gpus = self.targets.attrs["gpus"]
        spent = gpu_hours.gpu_hours(self.measured.best, self.targets, gpus)
        shown = pd.DataFrame(
            {
                "submission": spent.index,
                gpu_hours.heading(spent, gpus): list(gpu_hours.shown(spent).values()),
                "missed": [f"{row['misses']:.0f} of {row['studies']:.0f}" for _, row in spent.iterrows()],
                "workloads without a run": spent["missing"].tolist(),
            }
        )
        return markdown(shown)

    def best(self, which: str) -> str:
        """Mean over studies of the best validation metric of a run, or the final one; of several trials in a study, the
        best."""
        trials = self.measured.trials
        lower = trials["workload"].map(self.targets["lower"])
        ordered = trials.assign(order=trials[which] * np.where(lower, 1, -1)).sort_values("order", kind="stable")
        groups = ordered.drop_duplicates(to_target.STUDY).groupby(["submission", "workload"])[which]
        cells = {
            key: number(mean, ".4f") + ("" if np.isnan(std) else f" ± {std:.4f}")
            for key, mean, std in zip(groups.mean().index, groups.mean(), groups.std())
        }
        table = pd.Series(cells).unstack().fillna("-")
        metrics = self.targets["metric"].to_dict()
        table.columns = pd.Index([f"{name} ({metrics[name]})" for name in table.columns])
        return markdown(table.rename_axis("submission").reset_index())

    def sweep(self, x: str, y: str) -> Figure:
        trials = to_target.interpolated(self.measured.trials)
        rows = trials.assign(x=[h.get(x, np.nan) for h in trials["hparams"]], line=self._lines_without(x))
        return panels.against(rows, self.baseline, self.targets, y, x, "line")

    def shorter(self) -> Figure:
        trials = self.measured.trials.assign(line=self._lines_without("schedule_fraction"))
        return shorter_schedules.against_shorter(self.measured.curves, self.targets, self.baseline, trials)

    def horizon(self, y: str, until: float, line: str, x: str) -> Figure:
        return horizon_figures.against_horizon(
            to_target.interpolated(self._until(until)), self.baseline, self.targets, y, line, x
        )

    def heatmap(self, y: str, until: float) -> Figure:
        return horizon_figures.heatmap(to_target.interpolated(self._until(until)), self.targets, y)

    def optima(self, y: str, until: float, line: str) -> str:
        return horizon_figures.optima(to_target.interpolated(self._until(until)), self.baseline, self.targets, y, line)

    def leads(self, show: str) -> Figure | str:
        table = self._leads()
        return (
            horizon_figures.leads(table, self.arm, self.targets)
            if show == "figure"
            else horizon_figures.leads_table(table)
        )

    def data(self, until: float) -> pd.DataFrame:
        return horizon_figures.data(self._until(1.0), self._until(until), until)

    def _lines_without(self, x: str) -> list[str]:
        """Of each run its arm but for the hyperparameter x, against which the arms are drawn: a line each."""
        grids = self.comparison.grid.items()
        others = {base: {name: values for name, values in grid.items() if name != x} for base, grid in grids}
        trials = self.measured.trials
        return [_arm(base, h, others.get(base, {})) for base, h in zip(trials["base"], trials["hparams"])]
