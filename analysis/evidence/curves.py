"""Learning curves of the evidence: a panel a workload, raw weights and averages at their evaluations."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.evidence import ratios
from analysis.evidence.data import RAW, Run
from analysis.evidence.figures import ALONG
from analysis.figures import panels, style

SHOWN_FROM = 0.15  # share of training at which the vertical range begins: before it curves fall by far more
NAMES = {RAW: "raw", **ALONG}
COLOURS = dict(zip(NAMES, style.COLOURS))


@dataclass(frozen=True)
class Line:
    """A line in every panel: the raw weights, or an average, of runs by workload."""

    runs: dict[str, list[Run]]
    name: str
    about: str = ""  # the runs, in front of the name
    look: str = "-"

    @property
    def label(self) -> str:
        return f"{self.about} {NAMES[self.name]}".strip()


def learning_curves(lines: Sequence[Line]) -> Figure:
    """Validation against updates; the first line is the baseline, whose workloads, targets and range are shown.

    Lines are means over seeds, bands go from the lowest to the highest. Where all seeds of a line reach the target, a
    bar across it marks the mean of their updates.
    """
    baseline = lines[0].runs
    figure, axes = style.panels(len(baseline))
    keys: dict[str, Artist] = {}
    for axis, (workload, mine) in zip(axes, baseline.items()):
        level, sign = ratios.target(mine), mine[0].sign
        for line in lines:
            runs = line.runs.get(workload, [])
            curves = [run.curve(line.name) for run in runs]
            if not curves:
                continue
            colour = COLOURS[line.name]
            steps, values = curves[0][0], sign * np.array([values for _, values in curves])
            axis.plot(steps, values.mean(axis=0), line.look, color=colour, linewidth=1.2, label=line.label)
            axis.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, lw=0)
            met = [ratios.crossed(run, line.name, level) for run in runs]
            if np.isfinite(met).all():
                axis.plot([np.mean(met)], [sign * level], "|", color=colour, markersize=12, mew=2)
                keys["bar"] = style.mark_key("mean updates to the target", marker="|", markersize=12, mew=2)
        style.target_line(axis, sign * level)
        axis.set_xlim(0, mine[0].steps)
        axis.set_ylim(*_range(mine))
        _label(axis, mine[0], workload)
    keys["band"] = style.band_key("lowest to highest seed")
    style.legend_below(figure, axes, [line.label for line in lines], keys.values())
    return figure


def _range(runs: Sequence[Run]) -> tuple[float, float]:
    """From what the worst raw run has after `SHOWN_FROM` of training to a tenth of that beyond the best one."""
    curves = [run.curve(RAW) for run in runs]
    late = [values[steps >= SHOWN_FROM * run.steps] for run, (steps, values) in zip(runs, curves)]
    worst, best = min(values[0] for values in late), max(values.max() for values in late)
    first, last = sorted((runs[0].sign * worst, runs[0].sign * (best + 0.1 * (best - worst))))
    return float(first), float(last)


def _label(axis: Axes, run: Run, workload: str) -> None:
    metric = panels.METRICS.get(run.facts["metric"], run.facts["metric"])
    axis.set(title=workload, xlabel="updates", ylabel=panels.labelled(f"validation {metric}", run.sign < 0))
