"""Trials x studies x workloads of one submission as independent jobs, and what they may cost."""

import difflib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import submitit

from launching import disk_room, official, own_submissions, slurm
from launching.local_jobs import Job, Pool
from launching.official_workloads import WORKLOADS, base_name
from miniperf import search, submission, workloads
from weight_averaging.atomic_file import replacing
from weight_averaging.errors import UsageError

SELF_TUNING = 1.5  # times the budget
FOLDER = "sweep"  # below that of the runs: the sweep's own


@dataclass(eq=False, kw_only=True)
class Trial(Job):
    """One trial of one study on one workload.

    Attributes:
        search_space: a list, also where the sweep's own was a dict of ranges: a seeded draw of it.
        points: how many it has.
        flags: further ones of scripts.run.
        ranks: of miniperf; the official harness has its own from --gpus.
    """

    harness: str
    points: int
    flags: Sequence[str] = ()
    ranks: int = 1

    @property
    def name(self) -> str:
        framework = "" if self.framework == "pytorch" else f"-{self.framework}"
        return f"{self.workload}-{self.submission}{framework}-study_{self.seed}-trial_{self.trials[0]}"

    @property
    def log(self) -> Path:
        return self.experiment_dir / FOLDER / "logs" / f"{self.name}.txt"

    @property
    def marker(self) -> Path:
        """Of a finished job."""
        return self.experiment_dir / FOLDER / f"{self.name}.done"

    def finished(self) -> bool:
        """Whether it has ended with these flags. With others, say more updates, the runner decides what is left."""
        return self.marker.exists() and self.marker.read_text() in ("", shlex.join(self.flags))

    def mark_finished(self) -> None:
        with replacing(self.marker) as file:
            file.write(shlex.join(self.flags).encode())

    def command(self) -> list[str]:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.ranks}"]
        tuning = ["--tuning_ruleset=self"]
        if self.search_space is not None:
            tuning = [
                f"--tuning_search_space={self.search_space}", f"--num_tuning_trials={self.points}",
                f"--hparam_start_index={self.trials[0] - 1}", f"--hparam_end_index={self.trials[0]}",
            ]  # fmt: skip
        return [
            sys.executable, *(torchrun if self.ranks > 1 else []), "-m", "scripts.run", f"--harness={self.harness}",
            f"--framework={self.framework}", f"--submission={self.submission}", f"--workload={self.workload}",
            f"--rng_seed={self.seed}", *tuning,
            f"--experiment_dir={self.experiment_dir}", "--resume_last_run", "--nosave_intermediate_checkpoints",
            *self.flags,
        ]  # fmt: skip

    def __call__(self) -> None:
        """What submitit calls in a job of Slurm."""
        code = slurm.run(self.command())
        if code:
            raise subprocess.CalledProcessError(code, self.command())
        self.mark_finished()

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit puts back into the queue when Slurm preempts the job or its time is over."""
        return submitit.helpers.DelayedSubmission(self)


@dataclass(frozen=True)
class Cost:
    """Of a trial that uses up its budget, that of the harness on 4 x A100.

    Attributes:
        hours: GPU-hours.
        gigabytes: of its one checkpoint: weights, two moments and, in float32, the window or average and raw weights.
    """

    hours: float
    gigabytes: float


def cost(workload: str, gpus: int, point: dict[str, Any], self_tuning: bool = False) -> Cost:
    needs = WORKLOADS[base_name(workload)]
    factor = (SELF_TUNING if self_tuning else 1.0) * max(gpus, 1) / 3600
    return Cost(factor * needs.a100_seconds, disk_room.gigabytes(base_name(workload), 3 + disk_room.averages(point)))


def text_of(costs: list[Cost]) -> str:
    """The sum in words."""
    hours, gigabytes = sum(cost.hours for cost in costs), sum(cost.gigabytes for cost in costs)
    return f"up to {hours:.1f} GPU-hours, {gigabytes:.1f} GB"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is swept.

    Attributes:
        studies: runs of every trial, with the seeds 1, 2, ...
        search_space: None: the submission's own, if it has one.
        num_tuning_trials: None: all points of a list.
        space_seed: of the draw from a dict of ranges.
        gpus: of a job.
        run_flags: further ones of scripts.run.
        experiment_dir: root folder of the runs, absolute.
    """

    submission: str
    framework: str
    workloads: Sequence[str]
    studies: int
    harness: str
    gpus: int
    experiment_dir: Path
    search_space: str | None = None
    num_tuning_trials: int | None = None
    space_seed: int = 0
    run_flags: Sequence[str] = ()

    def jobs(self, write: bool) -> list[tuple[Trial, Cost]]:
        """All jobs, and what each may cost. UsageError for anything unknown.

        Args:
            write: the points into the file that the jobs read.
        """
        official_run = self.harness == "official"
        source = self._checked_source()
        if source is None:
            space, points = None, [self._load().recipe.point]
        else:
            space = self.experiment_dir / FOLDER / Path(source).name
            points = expand(source, self.num_tuning_trials, self.space_seed, space, write)
        own = [f"--gpus={self.gpus}"] if official_run else []
        result = []
        for workload in self.workloads:
            for study in range(1, self.studies + 1):
                for trial, point in enumerate(points, start=1):
                    job = Trial(
                        framework=self.framework,
                        submission=self.submission,
                        workload=workload,
                        seed=study,
                        trials=[trial],
                        search_space=space,
                        experiment_dir=self.experiment_dir,
                        harness=self.harness,
                        points=len(points),
                        flags=(*own, *self.run_flags),
                        ranks=1 if official_run else max(1, self.gpus),
                    )
                    needs = cost(workload, self.gpus, point, space is None) if official_run else Cost(0.0, 0.0)
                    result.append((job, needs))
        return result

    def _checked_source(self) -> str | None:
        """The search space. None: the submission tunes itself."""
        path = self._path
        check_run_flags(self.run_flags)
        official_run = self.harness == "official"
        for name in self.workloads:
            base_name(name) if official_run else workloads.make(name, self.framework)
            if official_run:
                official.check_batch_size(name, self.gpus)
        own = {search.default_path(self.submission, name, official_run) for name in self.workloads}
        if self.search_space is None and len(own) > 1:
            listed = ", ".join(sorted(map(str, own)))
            raise UsageError(f"--workloads have search spaces of their own ({listed}): sweep them one by one")
        source = self.search_space or own.pop()
        ruleset = "self" if source is None else "external"
        trials = search.trials(ruleset, source, self.num_tuning_trials, self.space_seed)
        for name in self.workloads:
            if official_run:
                official.check_trials(str(path), source, trials, name, self.framework)
            elif source is None:
                submission.check_trials(self._load(), trials, workloads.make(name, self.framework).step_hint)
        return source

    @property
    def _path(self) -> Path:
        return own_submissions.path_of(self.submission, self.framework)

    def _load(self) -> ModuleType:
        return submission.load(str(self._path), self.framework)


def check_run_flags(words: Sequence[str]) -> None:
    """UsageError for a flag that scripts.run does not have, before every job of a sweep ends with it."""
    # Read, not imported: flags of the same names are here.
    sources = [Path(find_spec(name).origin).read_text() for name in ("scripts.run", "miniperf.submission_runner")]  # type: ignore[union-attr, arg-type]
    known = [name for text in sources for name in re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', text)]
    for word in words:
        name = word.lstrip("-").partition("=")[0]
        if word.startswith("-") and name not in known and name.removeprefix("no") not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f": did you mean --{near[0]}?" if near else "; python -m scripts.run --helpfull lists its flags"
            raise UsageError(f"--run_flags={word}: scripts.run has no such flag{hint}")


def expand(source: str, trials: int | None, seed: int, path: Path, write: bool) -> list[dict[str, Any]]:
    """The sweep's points, also written to `path` as a list, of which jobs can take one each.

    UsageError if `path` is there already with other points.
    """
    points = [point._asdict() for point in search.load(source, trials, seed)]
    if path.exists():
        if json.loads(path.read_text()) != points:
            other = "take another --experiment_dir for another sweep"
            raise UsageError(f"{path} holds other points than {source}: {other}")
    elif write:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(json.dumps(points, indent=1).encode())
    return points


def start_here(waiting: Sequence[Trial], at_a_time: int, gpus: int) -> int:
    """Run so many at a time on this machine, each on GPUs of its own, and wait. Returns how many failed."""

    def environment(slot: int) -> dict[str, str]:
        return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(slot * gpus, (slot + 1) * gpus)))}

    failed = 0
    with Pool(waiting, at_a_time, environment) as pool:
        while pool.active:
            for job in pool.begin():
                print(f"{job.name}: what it says goes to {job.log}", flush=True)
            for job, well in pool.ended():
                if well:
                    job.mark_finished()
                    # What the official harness looks for, its report knows.
                    result = "" if job.harness == "official" else f": {job.result()}"
                    print(f"done: {job.name}{result}", flush=True)
                else:
                    failed += 1
                    print(f"failed: {job.name}; see {job.log}", file=sys.stderr)
    return failed


def submit(waiting: Sequence[Trial], executor: submitit.AutoExecutor) -> None:
    """Submit them to Slurm, those of a workload as an array, and say under which numbers."""
    for workload in dict.fromkeys(job.workload for job in waiting):
        jobs = {job.name: job for job in waiting if job.workload == workload}
        ids = slurm.submit(executor, f"{workload}-{waiting[0].submission}", jobs)
        print(f"{workload}: submitted {ids[0]}" + (f" ... {ids[-1]}" if len(ids) > 1 else ""))
