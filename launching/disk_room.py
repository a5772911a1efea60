"""The disk that the checkpoints of runs under the official harness take."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launching.official_workloads import WORKLOADS
from weight_averaging.errors import UsageError


def averages(point: Mapping[str, Any]) -> int:
    """Copies of the weights that an average adds to a checkpoint, in float32: a window or an EMA, and the raw ones.

    Args:
        point: hyperparameters of a submission of this repository; 0 for one without an average.
    """
    averaged = any(name.startswith("averaging") for name in point)
    return int(point.get("averaging_window", 1)) + 1 if averaged else 0


def gigabytes(workload: str, copies: int) -> float:
    """Of so many copies of a workload's weights in float32; 0 for a variant, whose model is another."""
    known = WORKLOADS.get(workload)
    return 4e-9 * known.parameters * copies if known else 0.0


def check(workload: str, experiment_dir: str, trials: Mapping[Path, Any], own: bool) -> None:
    """UsageError unless the folder can be made, or written to, and has room for a checkpoint of every trial.

    Args:
        trials: that are to leave one, by folder, with their hyperparameters, or None. One that has a checkpoint
            replaces it.
        own: whether the submission is of this repository. Its checkpoints have a moment of the gradients at least, and
            the average. Of others only the weights are counted.
    """
    folder = Path(experiment_dir).expanduser().absolute()
    there = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UsageError(f"--experiment_dir={experiment_dir}: {there} is no folder that can be written to")
    new = [point for trial, point in trials.items() if not any(trial.glob("checkpoint_*"))]
    copies = [2 + averages(point._asdict()) if own and point is not None else 1 for point in new]
    needed, free = gigabytes(workload, sum(copies)), shutil.disk_usage(there).free / 1e9
    if free < needed:
        what = f"the checkpoint of {workload} takes"
        if len(new) > 1:
            what = f"the checkpoints of {len(new)} trials of {workload} take"
        raise UsageError(f"--experiment_dir={experiment_dir}: {free:.3g} GB free, {what} {needed:.3g} at least")
