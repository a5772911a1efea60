"""The jobs of a suite: runs of so many updates, and averages of their snapshots."""

import abc
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from launching.local_jobs import Job, Pool
from weight_averaging.errors import UsageError

THREADS = {"OMP_NUM_THREADS": "1"}


@dataclass(eq=False, kw_only=True)
class SuiteJob(Job):
    """A run of a known number of updates, in whose folder it can be seen how many are done."""

    steps: int

    @property
    def name(self) -> str:
        trials = f"trial {self.trials[0]}" if len(self.trials) == 1 else f"{len(self.trials)} trials"
        return f"{self.submission} on {self.workload}, seed {self.seed}, {trials}"

    @property
    def log(self) -> Path:
        name = f"{self.submission}_{self.workload}_{self.seed}_{self.trials[0]}.txt"
        return self.experiment_dir / "logs" / name

    def finished(self) -> bool:
        return self.done() >= self.steps

    @abc.abstractmethod
    def done(self) -> int:
        """Updates that need not be done again."""

    def seen(self) -> int:
        """Updates that are done, as of the log, which may be ahead of what is saved."""
        return self.done()


@dataclass(eq=False, kw_only=True)
class Training(SuiteJob):
    """Trains one trial, and keeps snapshots if averages are made of them."""

    evaluate_every: int
    snapshots_every: int | None = None

    def done(self) -> int:
        checkpoints = self.folder(self.trials[0]).glob("checkpoint_*")
        return max((int(path.name.removeprefix("checkpoint_")) for path in checkpoints), default=0)

    def seen(self) -> int:
        return max(self.done(), _last_step(self.folder(self.trials[0]) / "measurements.csv"))

    def command(self) -> list[str]:
        trial = self.trials[0]
        snapshots = self.snapshots_every and [f"--save_snapshots_every_n_steps={self.snapshots_every}"]
        tuning = ["--tuning_ruleset=self"]
        if self.search_space is not None:
            one = [f"--hparam_start_index={trial - 1}", f"--hparam_end_index={trial}"]
            tuning = [f"--tuning_search_space={self.search_space}", *one]
        return [
            sys.executable, "-m", "scripts.run", f"--framework={self.framework}", f"--submission={self.submission}",
            f"--workload={self.workload}", *tuning,
            f"--rng_seed={self.seed}", f"--experiment_dir={self.experiment_dir}", "--resume_last_run",
            "--continue_after_target", f"--max_global_steps={self.steps}",
            f"--eval_every_n_steps={self.evaluate_every}", "--nosave_intermediate_checkpoints", *(snapshots or []),
        ]  # fmt: skip


@dataclass(eq=False, kw_only=True)
class Averaging(SuiteJob):
    """Averages the snapshots of the run `source`, and evaluates the averages on the validation set."""

    source: Training

    def done(self) -> int:
        return min(_last_step(self.folder(trial) / "eval_measurements.csv") for trial in self.trials)

    def command(self) -> list[str]:
        return [
            sys.executable, "-m", "scripts.average_checkpoints",
            str(self.source.folder(self.source.trials[0]) / "snapshots"),
            f"--workload={self.workload}", f"--submission={self.submission}",
            f"--tuning_search_space={self.search_space}", f"--trials={','.join(map(str, self.trials))}",
            f"--experiment_dir={self.experiment_dir}", "--validation_only",
        ]  # fmt: skip


def _last_step(table: Path) -> int:
    try:
        header, *_, last = table.read_text().splitlines()
    except (OSError, ValueError):  # not there, or no evaluation in it
        return 0
    return int(last.split(",")[header.split(",").index("global_step")])


def run(jobs: Sequence[SuiteJob], at_a_time: int) -> list[SuiteJob]:
    """Do what is left of the jobs, with a bar of all updates. Returns those that failed.

    UsageError if a run in the folder is longer than asked for.
    """
    for job in jobs:
        if isinstance(job, Training) and job.done() > job.steps:
            raise UsageError(
                f"{job.folder(job.trials[0])} has a run of {job.done()} updates, more than the {job.steps} asked for: "
                "choose another --experiment_dir"
            )
    waiting = [job for job in jobs if not job.finished()]
    total = sum(job.steps for job in jobs)
    finished = total - sum(job.steps for job in waiting)
    failed: list[SuiteJob] = []
    bar = tqdm(total=total, initial=finished, unit="step", disable=None, dynamic_ncols=True, smoothing=0.02)
    with bar, Pool(waiting, at_a_time, lambda slot: THREADS) as pool:
        while pool.active:
            pool.begin()
            for job, well in pool.ended():
                finished += job.steps
                if well:
                    bar.write(f"{pool.over}/{len(waiting)} {job.name}: {job.result()}")
                    sys.stdout.flush()
                else:
                    failed.append(job)
                    bar.write(f"failed: {job.name}; see {job.log}")
            bar.set_postfix_str(f"{pool.over}/{len(waiting)} runs done", refresh=False)
            bar.update(finished + sum(job.seen() for job in pool.running) - bar.n)
    return failed
