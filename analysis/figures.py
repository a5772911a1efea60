"""Figures from runs."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from analysis.logs import LOWER_IS_BETTER, Run
from analysis.targets import reached_at

# Okabe and Ito's palette: told apart with any colour vision.
COLOURS = ["#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442"]


def learning_curves(runs: Sequence[Run], baseline: str, path: Path) -> None:
    """One panel per workload: the validation metric against updates, a line per submission (mean over runs, band from
    lowest to highest), the target dashed, and a mark where each submission's mean curve first reaches it."""
    workloads = sorted({run.workload for run in runs})
    names = sorted({run.submission for run in runs}, key=lambda name: (name != baseline, name))
    figure, axes = plt.subplots(1, len(workloads), figsize=(6.4 * len(workloads), 4.2), squeeze=False)
    for axis, workload in zip(axes[0], workloads, strict=True):
        here = [run for run in runs if run.workload == workload]
        metric, target = here[0].metric, here[0].target
        assert metric is not None
        assert target is not None
        for colour, name in zip(COLOURS * len(names), names, strict=False):
            mine = [run for run in here if run.submission == name]
            if not mine:
                continue
            steps = sorted(set.intersection(*(set(run.evaluations["global_step"]) for run in mine)))
            values = np.array(
                [run.evaluations.set_index("global_step").loc[steps, f"validation/{metric}"] for run in mine]
            )
            (line,) = axis.plot(steps, values.mean(axis=0), color=colour, label=name, linewidth=1.6)
            if len(mine) > 1:
                axis.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0)
            hits = [hit["global_step"] for run in mine if (hit := reached_at(run, metric, target)) is not None]
            if len(hits) == len(mine):
                axis.plot(np.mean(hits), target, "o", color=colour, markersize=8, markeredgecolor="white", zorder=5)
            else:
                line.set_label(f"{name} ({len(mine) - len(hits)} of {len(mine)} missed)")
        axis.axhline(target, color="0.4", linestyle="--", linewidth=1)
        axis.annotate(f"target {target:g}", (1, target), xycoords=("axes fraction", "data"), xytext=(-3, 4),
                      textcoords="offset points", fontsize=8, color="0.3", ha="right")  # fmt: skip
        axis.set(title=workload, xlabel="updates", ylabel=f"validation {metric}")
        axis.set_ylim(*_interesting_range(here, metric, target))
        axis.legend(frameon=False, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Dots: mean number of updates to the target", fontsize=9, color="0.3", y=0.995)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _interesting_range(runs: Sequence[Run], metric: str, target: float) -> tuple[float, float]:
    """From a little beyond the best value to what the first fifth of training leaves behind."""
    late = np.concatenate(
        [run.evaluations.iloc[max(1, len(run.evaluations) // 6) :][f"validation/{metric}"] for run in runs]
    )
    values = np.append(late[np.isfinite(late)], target)
    margin = 0.05 * (values.max() - values.min()) or 0.01
    low, high = values.min() - margin, values.max() + margin
    return (low, high) if metric in LOWER_IS_BETTER else (low, min(high, 1.0) if values.max() <= 1 else high)
