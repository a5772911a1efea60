"""Trials x studies x workloads as independent jobs, each one command that resumes where it was stopped."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit

from launching import slurm
from launching.official_workloads import WORKLOADS, base_name
from miniperf import search
from weight_averaging.errors import UsageError

SELF_TUNING = 1.5  # times the budget


@dataclass(frozen=True)
class Job:
    """One trial of one study on one workload."""

    harness: str
    framework: str
    workload: str
    submission: str
    study: int  # its seed
    trial: int  # from 1
    trials: int
    space: str | None  # a list, also where the sweep's own was a dict of ranges: a seeded draw of it; None: self-tuning
    experiment_dir: str
    flags: tuple[str, ...] = ()  # further ones of scripts.run
    ranks: int = 1  # of miniperf; the official harness has its own from --gpus

    @property
    def name(self) -> str:
        framework = "" if self.framework == "pytorch" else f"-{self.framework}"
        return f"{self.workload}-{self.submission}{framework}-study_{self.study}-trial_{self.trial}"

    @property
    def marker(self) -> Path:
        """Of a finished job."""
        return Path(self.experiment_dir) / "sweep" / f"{self.name}.done"

    @property
    def folder(self) -> Path:
        """Of the trial, in which its logs are."""
        study = Path(self.experiment_dir) / self.submission / f"study_{self.study}"
        return study / f"{self.workload}_{self.framework}" / f"trial_{self.trial}"

    def command(self) -> list[str]:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.ranks}"]
        tuning = ["--tuning_ruleset=self"]
        if self.space is not None:
            tuning = [
                f"--tuning_search_space={self.space}", f"--num_tuning_trials={self.trials}",
                f"--hparam_start_index={self.trial - 1}", f"--hparam_end_index={self.trial}",
            ]  # fmt: skip
        return [
            sys.executable, *(torchrun if self.ranks > 1 else []), "-m", "scripts.run", f"--harness={self.harness}",
            f"--framework={self.framework}", f"--submission={self.submission}", f"--workload={self.workload}",
            f"--rng_seed={self.study}", *tuning,
            f"--experiment_dir={self.experiment_dir}", "--resume_last_run", "--nosave_intermediate_checkpoints",
            *self.flags,
        ]  # fmt: skip

    def __call__(self) -> None:
        """What submitit calls in a job of Slurm."""
        code = slurm.run(self.command())
        if code:
            raise subprocess.CalledProcessError(code, self.command())
        self.marker.touch()

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit puts back into the queue when Slurm preempts the job or its time is over."""
        return submitit.helpers.DelayedSubmission(self)


def expand(source: str, trials: int | None, seed: int, path: Path, write: bool) -> list[dict[str, Any]]:
    """The sweep's points, also written to `path` as a list, of which jobs can take one each.

    UsageError if `path` is there already with other points.
    """
    points = [point._asdict() for point in search.load(source, trials, seed)]
    if path.exists() and json.loads(path.read_text()) != points:
        raise UsageError(f"{path} holds other points than {source}: take another --experiment_dir for another sweep")
    if write:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(points, indent=1))
    return points


@dataclass(frozen=True)
class Cost:
    """Of a trial that uses up its budget: at 2c90454 the harness stops it at the V100 budget, in 2026 at the other.

    Attributes:
        hours: GPU-hours by machine, "V100" and "A100", of the budgets that the workload has.
        gigabytes: of its one checkpoint: weights, two moments and, in float32, the window or average and raw weights.
    """

    hours: dict[str, float]
    gigabytes: float


def cost(workload: str, gpus: int, point: dict[str, Any], self_tuning: bool = False) -> Cost:
    needs = WORKLOADS[base_name(workload)]
    averages = point.get("averaging_window", 1) + 1 if any(name.startswith("averaging") for name in point) else 0
    budgets = {"V100": needs.v100_seconds, "A100": needs.a100_seconds}
    factor = (SELF_TUNING if self_tuning else 1.0) * max(gpus, 1) / 3600
    hours = {machine: factor * seconds for machine, seconds in budgets.items() if seconds is not None}
    return Cost(hours, 4e-9 * needs.parameters * (3 + averages))


def text_of(costs: list[Cost]) -> str:
    """The sum in words. A trial without a budget for a machine counts with the other."""
    machines = {machine: 0.0 for cost in costs for machine in cost.hours}
    for machine in machines:
        machines[machine] = sum(cost.hours.get(machine, max(cost.hours.values())) for cost in costs)
    hours = " or ".join(f"{total:.1f} ({machine} budget)" for machine, total in machines.items())
    return f"up to {hours or 0} GPU-hours, {sum(cost.gigabytes for cost in costs):.1f} GB"
