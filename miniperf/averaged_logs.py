"""Evaluating averages of a run's snapshots on its workload, into log folders of the official form.

Each grid point gets a log folder, as if averaged in training. Its rows carry the baseline's submission time at that
step, from the run's own evaluations.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from miniperf import random_utils
from miniperf.frameworks.pytorch import FRAMEWORK
from miniperf.logs import MetricsLogger, meta_data, write_json
from weight_averaging.averages import Average, SnapshotError
from weight_averaging.errors import UsageError
from weight_averaging.offline import Plan, latest_of
from weight_averaging.offline.reading.snapshots import Snapshots


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
        self.data_dir = str(self._read("flags_0.json").get("data_dir", ""))
        self.rng_seed = int(self._read("meta_data_0.json").get("rng_seed", 0))
        study = re.search(r"study_(\d+)", str(self.folder.absolute()))
        self.study = int(study[1]) if study else 0

    def _read(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        return json.loads(path.read_text()) if path.exists() else {}

    def submission_time(self, step: int) -> float:
        """Seconds of training up to `step`, linear between evaluations."""
        return float(np.interp(step, [0, *self.steps], [0.0, *self._seconds]))


@dataclass(frozen=True)
class Point:
    """A grid point: what is averaged, and when it is evaluated, ascending.

    It also says where the rows go, of which settings they are, and what can be done where another's are there
    already.
    """

    average: Average
    steps: Sequence[int]
    folder: Path
    hyperparameters: dict[str, Any]
    elsewhere: str = "give another --experiment_dir"


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
    points: Sequence[Point],
    validation_only: bool = False,
    latest: set[str] | None = None,
) -> None:
    """Evaluate each point at its steps and write the rows; those that are there already are kept.

    Args:
        validation_only: leave out the training and the test set, for the sake of time.
        latest: the tensors that are not averaged; None: as `offline.latest_of` has it.
    Raises:
        UsageError: a log folder is of another grid point, or the snapshots are of another model.
    """
    logs: dict[tuple[Average, int], list[_Log]] = {}
    for point in points:
        log = _Log(point, source)
        for step in log.left():
            logs.setdefault((point.average, step), []).append(log)
    if not logs:
        return
    workload.open(source.data_dir)
    model, model_state = workload.init_model_fn(random_utils.key_from_seed(source.rng_seed))
    if latest is None:
        latest = latest_of(snapshots.layout, known=snapshots.latest)
    rates = snapshots.learning_rates
    plan = Plan(logs, snapshots.steps, latest=latest, frozen=snapshots.frozen, learning_rates=rates)
    rng = random_utils.key_from_seed(source.rng_seed)
    data = source.data_dir
    with tqdm(total=len(logs), unit="evaluation", disable=None) as bar:
        for result in plan.run(snapshots.stream(plan.needed)):
            try:
                model.load_state_dict(result.state)
            except RuntimeError as error:
                line = " ".join(str(error).split())[:200]
                raise UsageError(f"{snapshots.folder} holds no snapshots of {workload_name}: {line}") from None
            if validation_only:
                count = workload.num_validation_examples
                split = workload._eval_model_on_split(
                    "validation", count, workload.eval_batch_size, model, model_state, rng, data, result.step
                )
                metrics = {f"validation/{name}": value for name, value in split.items()}
                metrics["validation/num_examples"] = count
            else:
                metrics = workload.eval_model(
                    workload.eval_batch_size, model, model_state, rng, data, None, result.step
                )
            for log in logs[result.average, result.step]:
                if not log.begun:  # not before: snapshots of another workload leave nothing behind
                    log.begin(workload, workload_name, snapshots)
                log.add(metrics, result.step)
            bar.update()
    for log in dict.fromkeys(log for same in logs.values() for log in same):
        log.finish()


class _Log:
    """The log folder of one grid point. UsageError if it is of another one already."""

    def __init__(self, point: Point, source: Source) -> None:
        self._point, self._source = point, source
        self._logger: MetricsLogger | None = None
        path = point.folder / "eval_measurements.csv"
        self._done = [int(step) for step in pd.read_csv(path)["global_step"]] if path.exists() else []
        there = point.folder / "hparams.json"
        if there.exists() and json.loads(there.read_text()) != point.hyperparameters:
            raise UsageError(f"{point.folder} is of other hyperparameters than {point.average}: {point.elsewhere}")

    def left(self) -> list[int]:
        """The steps not yet evaluated, which come after those that are."""
        left = [step for step in self._point.steps if step not in self._done]
        if left and self._done and min(left) < max(self._done):
            raise UsageError(
                f"{self._point.folder} has evaluations up to step {max(self._done)}, so step {min(left)} cannot be "
                f"added: {self._point.elsewhere}"
            )
        return left

    @property
    def begun(self) -> bool:
        return self._logger is not None

    def begin(self, workload: Any, workload_name: str, snapshots: Snapshots) -> None:
        folder = self._point.folder
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "hparams.json", self._point.hyperparameters)
        write_json(folder / "meta_data_0.json", meta_data(workload, self._source.rng_seed, FRAMEWORK.versions()))
        flags = {"workload": workload_name, "framework": "pytorch", "snapshots": str(snapshots.folder)}
        flags |= {"submission": folder.absolute().parents[2].name, "average": str(self._point.average)}
        write_json(folder / "flags_0.json", flags)
        self._logger = MetricsLogger(folder, max(self._done, default=0))

    def add(self, metrics: dict[str, float], step: int) -> None:
        assert self._logger is not None
        seconds = self._source.submission_time(step)
        times = {"score": seconds, "total_duration": seconds, "accumulated_submission_time": seconds}
        zero = {"accumulated_eval_time": 0.0, "accumulated_logging_time": 0.0}
        self._logger.append_scalar_metrics({**metrics, **times, **zero}, step, preemption_count=0, is_eval=True)

    def finish(self) -> None:
        assert self._logger is not None
        self._logger.finish()
