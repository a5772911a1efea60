"""A trial's log files, with the names and columns of the official harness."""

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from miniperf.events import Events
from weight_averaging.atomic_file import partial_beside, remove, replacing
from weight_averaging.errors import UsageError


def experiment_folder(
    experiment_dir: str, name: str, workload: str, framework: str, overwrite: bool, resume: bool
) -> Path:
    """`<experiment_dir>/<name>/<workload>_<framework>`, created. UsageError if it exists and no flag says so."""
    folder = Path(experiment_dir).expanduser() / name / f"{workload}_{framework}"
    gone = partial_beside(folder) if overwrite else None  # which removes what a kill has left of one before
    if folder.exists() and not resume:
        if gone is None:
            raise UsageError(f"{folder} exists: continue it with --resume_last_run, or replace it with --overwrite")
        os.replace(folder, gone)  # in one step: a run of which a part is left could be resumed
        remove(gone)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--experiment_dir={experiment_dir}: cannot create {folder}: {error.strerror}") from None
    return folder


HYPERPARAMETERS = "hparams.json"


def write_hyperparameters(folder: Path, hyperparameters: Any) -> None:
    """Into a trial's folder, if they are not there."""
    path, now = folder / HYPERPARAMETERS, _as_read(hyperparameters)
    if not path.exists() or json.loads(path.read_text()) != now:
        write_json(path, now)


def check_hyperparameters(folder: Path, hyperparameters: Any) -> None:
    """UsageError if a run has begun in a trial's folder with other hyperparameters: it cannot continue with these."""
    path = folder / HYPERPARAMETERS
    if not path.exists() or not (any(folder.glob("checkpoint_*")) or any(folder.glob("*measurements.csv"))):
        return
    before, now = json.loads(path.read_text()), _as_read(hyperparameters)
    names = [name for name in {**before, **now} if _value(before, name) != _value(now, name)]
    if names:
        values = [f"{name} was {_value(before, name)} and is {_value(now, name)}" for name in names]
        raise UsageError(
            f"{folder} began with other hyperparameters than the search space now has: {', '.join(values)}; "
            "restore the search space, give another --experiment_name, or replace the run with --overwrite"
        )


def _as_read(hyperparameters: Any) -> dict[str, Any]:
    """As they come back from a file."""
    return json.loads(json.dumps(hyperparameters._asdict(), default=str))


def _value(point: dict[str, Any], name: str) -> str:
    return repr(point[name]) if name in point else "not there"


def evaluations_of(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """(completed updates, metrics) of each evaluation in a trial's folder; none where there is no table."""
    import pandas as pd

    path = folder / "eval_measurements.csv"
    table = pd.read_csv(path) if path.exists() else pd.DataFrame({"global_step": []})
    return [(int(step), dict(row)) for step, (_, row) in zip(table["global_step"], table.iterrows(), strict=True)]


def write_json(path: Path, contents: dict[str, Any]) -> None:
    _write(path, json.dumps(contents, indent=2, default=str))


def _write(path: Path, text: str) -> None:
    """Whole and in place at any moment: a kill must not leave half a line."""
    with replacing(path, sync=False) as file:  # the clock of training runs on while a row is written
        file.write(text.encode())


def meta_data(workload: Any, rng_seed: int, versions: dict[str, str]) -> dict[str, Any]:
    """Where and with what a run was made; `versions` are the framework's."""
    numbers = ("step_hint", "batch_size", "validation_target_value", "test_target_value", "target_metric_name")
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "workload": {
            "class_name": type(workload).__name__,
            **{name: getattr(workload, name) for name in numbers},
            "num_parameters": _elements(workload.param_shapes),
        },
        "rng_seed": rng_seed,
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "system_hardware_info": {"cpu_model_name": _cpu_name(), "cpu_count": os.cpu_count(), "threads": 1},
        "system_software_info": {
            "os_platform": platform.platform(),
            "python_version": platform.python_version(),
            **versions,
            "git_commit": git.stdout.strip() or None,
        },
    }


def _elements(shapes: Any) -> int:
    """Of all parameters, from a dictionary of shapes, in JAX a nested one."""
    if isinstance(shapes, Mapping):
        return sum(map(_elements, shapes.values()))
    return math.prod(shapes.shape_tuple)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def close_table(folder: Path, step: int, preemption_count: int, seconds: float) -> None:
    """Write the closing row of a run that ended after `step` updates, where a kill came between its last checkpoint
    and that row."""
    import pandas as pd

    path = folder / "measurements.csv"
    table = pd.read_csv(path) if path.exists() else pd.DataFrame()
    if "score" in table and table["score"].notna().any() and table["global_step"].iloc[-1] == step:
        return
    logger = MetricsLogger(folder, step)
    logger.append_scalar_metrics({"score": seconds}, step, preemption_count)
    logger.finish()


class NoLogger:
    """In place of a MetricsLogger on the ranks that write nothing."""

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}

    def append_scalar_metrics(
        self, metrics: dict[str, float], global_step: int, preemption_count: int | None = None, is_eval: bool = False
    ) -> None: ...

    def finish(self) -> None: ...


class MetricsLogger:
    """measurements.csv, eval_measurements.csv and TensorBoard events.

    In TensorBoard the tags are the metrics' names in numbered groups, so that validation comes first: 1_validation/...,
    2_test/..., 3_train/... and 6_clock/... of evaluations; 4_training/loss, grad_norm, learning_rate and
    5_averaging/... of training. The workload stands between, since losses of two do not fit one axis. All of them are
    drawn over completed updates.

    Args:
        folder: the trial's.
        step: completed updates of the checkpoint that training starts from. Rows of later steps, which a killed run
            left behind, are dropped: they come again.
    """

    def __init__(self, folder: Path, step: int) -> None:
        import pandas as pd  # not before a run starts

        self.latest: dict[str, float] = {}  # the last training metrics, for the progress bar
        self._paths = {False: folder / "measurements.csv", True: folder / "eval_measurements.csv"}
        self._tables: dict[bool, pd.DataFrame] = {}
        for is_eval, path in self._paths.items():
            # As text: what is written again must not change.
            table = pd.read_csv(path, dtype=str, keep_default_na=False) if path.exists() else pd.DataFrame()
            if len(table):
                # A training row carries the number of updates before its own, an evaluation row those completed.
                table = table[table["global_step"].astype(int) < step + is_eval]
            self._tables[is_eval] = table
        self._events = Events(folder, step)

    def append_scalar_metrics(
        self, metrics: dict[str, float], global_step: int, preemption_count: int | None = None, is_eval: bool = False
    ) -> None:
        """Add a row to the evaluations' or the training's table, and the values to TensorBoard."""
        import pandas as pd

        row = {**metrics, "global_step": global_step}
        if preemption_count is not None:
            row["preemption_count"] = preemption_count
        if not is_eval:
            self.latest.update(metrics)
        new = pd.DataFrame([row], columns=sorted(row))
        old = self._tables[is_eval]
        self._tables[is_eval] = pd.concat([old, new], ignore_index=True) if len(old) else new
        _write(self._paths[is_eval], self._tables[is_eval].to_csv(index=False))
        if is_eval:
            self._events.scalars(metrics, global_step, "clock")
            self._events.flush()  # a checkpoint follows, from which a run may go on
        elif "score" not in metrics:  # the closing row, whose score the last evaluation has
            self._events.scalars(metrics, global_step + 1, "training")

    def finish(self) -> None:
        self._events.close()
