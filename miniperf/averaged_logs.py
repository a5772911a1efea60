"""Evaluating averages of a run's snapshots on its workload, into log folders of the official form.

A grid point is `<experiment_dir>/<name>_<kind>/study_K/<workload>_pytorch/trial_N`, as if averaged in
training: its rows carry the baseline's submission time at that step, from the run's own evaluations.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from miniperf import random_utils
from miniperf.errors import UsageError
from miniperf.logs import MetricsLogger, meta_data, write_json
from weight_averaging.averages import Average, SnapshotError
from weight_averaging.offline import Plan
from weight_averaging.snapshot_files import Snapshots


class Source:
    """The run that the snapshots are of: `folder` or the one above it, with its eval_measurements.csv.

    Raises:
        UsageError: neither has that file.
    """

    def __init__(self, folder: Path) -> None:
        homes = [path for path in (folder, folder.absolute().parent) if (path / "eval_measurements.csv").exists()]
        if not homes:
            raise UsageError(f"{folder}: neither it nor the folder above has the run's eval_measurements.csv")
        self.folder = homes[0]
        table = pd.read_csv(self.folder / "eval_measurements.csv")
        self.steps = [int(step) for step in table["global_step"]]
        self._seconds = [float(seconds) for seconds in table["accumulated_submission_time"]]
        self.hyperparameters = self._read("hparams.json")
        self.rng_seed = int(self._read("meta_data_0.json").get("rng_seed", 0))
        study = re.search(r"study_(\d+)", str(self.folder.absolute()))
        self.study = int(study[1]) if study else 0

    def _read(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        return json.loads(path.read_text()) if path.exists() else {}

    def submission_time(self, step: int) -> float:
        """Seconds of training up to `step`, linear between evaluations."""
        return float(np.interp(step, [0, *self.steps], [0.0, *self._seconds]))


def possible_steps(average: Average, snapshots: Snapshots, steps: Sequence[int]) -> list[int]:
    """Those of `steps` for which the average is ready, as online; SnapshotError if there is none."""
    possible = []
    last: SnapshotError | None = None
    for step in steps:
        try:
            average.members(snapshots.steps, step)
        except SnapshotError as error:
            last = error
        else:
            possible.append(step)
    if not possible and last is not None:
        raise last
    return possible


def evaluate(
    workload: Any,
    workload_name: str,
    snapshots: Snapshots,
    source: Source,
    averages: Sequence[tuple[Average, Sequence[int]]],
    experiment: Path,
) -> None:
    """Evaluate each average at its steps, ascending, and write the rows; those that are there already are kept.

    Raises:
        UsageError: a log folder is of another grid point, or the snapshots are of another model.
    """
    logs = {
        average: _Log(_folder(experiment, averages, average, source, workload_name), average, source)
        for average, _ in averages
    }
    wanted = [(average, step) for average, steps in averages for step in logs[average].left(steps)]
    if not wanted:
        return
    model, model_state = workload.init_model_fn(random_utils.key_from_seed(source.rng_seed))
    for average, _ in averages:
        logs[average].begin(workload, workload_name, snapshots)
    plan = Plan(wanted, snapshots.steps)
    rng = random_utils.key_from_seed(source.rng_seed)
    with tqdm(total=len(wanted), unit="evaluation", disable=None) as bar:
        for result in plan.run(snapshots.stream(plan.needed)):
            try:
                model.load_state_dict(result.state)
            except RuntimeError as error:
                line = " ".join(str(error).split())[:200]
                raise UsageError(f"{snapshots.folder} holds no snapshots of {workload_name}: {line}") from None
            metrics = workload.eval_model(workload.eval_batch_size, model, model_state, rng, "", None, result.step)
            logs[result.average].add(metrics, result.step)
            bar.update()
    for log in logs.values():
        log.finish()


def _folder(
    experiment: Path, averages: Sequence[tuple[Average, Any]], average: Average, source: Source, workload_name: str
) -> Path:
    same_kind = [other for other, _ in averages if type(other) is type(average)]
    name = f"{experiment.name}_{type(average).__name__.lower()}"
    study = f"study_{source.study}"
    return experiment.parent / name / study / f"{workload_name}_pytorch" / f"trial_{same_kind.index(average) + 1}"


class _Log:
    """The log folder of one grid point."""

    def __init__(self, folder: Path, average: Average, source: Source) -> None:
        self._folder, self._average, self._source = folder, average, source
        self._logger: MetricsLogger | None = None
        path = folder / "eval_measurements.csv"
        self._done = [int(step) for step in pd.read_csv(path)["global_step"]] if path.exists() else []
        settings = {f"averaging_{name}": value for name, value in vars(average).items() if value is not None}
        self._hyperparameters = {**source.hyperparameters, **settings}
        there = folder / "hparams.json"
        if there.exists() and json.loads(there.read_text()) != self._hyperparameters:
            raise UsageError(f"{folder} is of other hyperparameters than {average}: choose another --experiment_name")

    def left(self, steps: Sequence[int]) -> list[int]:
        """The steps not yet evaluated, which come after those that are."""
        left = [step for step in steps if step not in self._done]
        if left and self._done and min(left) < max(self._done):
            raise UsageError(
                f"{self._folder} has evaluations up to step {max(self._done)}, so step {min(left)} cannot be added: "
                "choose another --experiment_name"
            )
        return left

    def begin(self, workload: Any, workload_name: str, snapshots: Snapshots) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._folder / "hparams.json", self._hyperparameters)
        write_json(self._folder / "meta_data_0.json", meta_data(workload, self._source.rng_seed))
        flags = {"workload": workload_name, "framework": "pytorch", "snapshots": str(snapshots.folder)}
        write_json(self._folder / "flags_0.json", {**flags, "average": str(self._average)})
        self._logger = MetricsLogger(self._folder, max(self._done, default=0))

    def add(self, metrics: dict[str, float], step: int) -> None:
        assert self._logger is not None
        seconds = self._source.submission_time(step)
        times = {"score": seconds, "total_duration": seconds, "accumulated_submission_time": seconds}
        zero = {"accumulated_eval_time": 0.0, "accumulated_logging_time": 0.0}
        self._logger.append_scalar_metrics({**metrics, **times, **zero}, step, preemption_count=0, is_eval=True)

    def finish(self) -> None:
        assert self._logger is not None
        self._logger.finish()
