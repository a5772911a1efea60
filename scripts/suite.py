"""Run submissions x workloads x seeds, several at a time.

    python -m scripts.suite --submissions=nadamw,lawa,ema --workloads=mini_criteo1tb --seeds=3
    python -m scripts.suite --study=comparisons/lawa_horizon.yaml --experiment_dir=runs/horizon
    python -m scripts.suite --study=comparisons/no_decay.yaml --workloads=mini_ogbg --seeds=1 --experiment_dir=runs/q

Every run is a process of its own with one thread, in <experiment_dir>/<submission>/study_<seed>. Calling the command
again skips the finished runs and continues the others, so that it can be stopped at any moment.

Of a submission's search space each workload takes one trial: the one whose learning rate is best for the baseline,
as recorded in <search_spaces>/tuned_trials.json (docs/results/calibration.md tells how it was found); another base
optimizer may have trials of its own there. A submission without a search space tunes itself: it has one point for all
workloads. A study, one of the paper's experiments in comparisons/, brings its own submissions and grid of
hyperparameters, and the workloads and seeds unless --workloads and --seeds say otherwise.
Where it says `offline: true`, runs without an
average keep snapshots, and the submissions that average are made of these, evaluated on the validation set alone.
"""

import functools
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from absl import app, flags
from tqdm import tqdm

from analysis.comparisons import comparison
from miniperf import command_line, frameworks, submission, workloads
from miniperf.logs import evaluations_of
from miniperf.progress import summary
from submissions.recipe.offline import average_of
from weight_averaging.averages import SnapshotError
from weight_averaging.errors import UsageError

FLAGS = flags.FLAGS

flags.DEFINE_string("study", None, "YAML file of an experiment: submissions, search spaces, workloads, seeds.")
flags.DEFINE_enum("framework", "pytorch", frameworks.NAMES, "Of submissions and workloads.")
flags.DEFINE_list("submissions", ["nadamw", "lawa", "ema"], "Folders of submissions/<framework>.")
flags.DEFINE_list("workloads", None, "Workloads; default: all that the framework has, or those of the study.")
flags.DEFINE_integer(
    "seeds", None, "Runs of each, with the seeds 0, 1, ...; default: 1, or as in the study.", lower_bound=1
)
flags.DEFINE_string(
    "search_spaces", "tuning_search_spaces/miniperf", "Folder with a <submission>.json each and tuned_trials.json."
)
flags.DEFINE_string("experiment_dir", "runs/suite", "Root folder of the runs.")
flags.DEFINE_integer(
    "evaluations", None, "Evaluations in a run, evenly spaced; default: 50, of short runs one every 10 updates.",
    lower_bound=1,
)  # fmt: skip
flags.DEFINE_integer("max_global_steps", None, "Updates in a run; default: the workload's step_hint.", lower_bound=1)
flags.DEFINE_integer("jobs", os.cpu_count(), "Runs at a time.", lower_bound=1)


@dataclass(eq=False)
class Job:
    """One run and the process that makes it."""

    submission: str
    workload: str
    seed: int
    search_space: Path | None  # None: it tunes itself
    trials: list[int]  # of the search space, from 1; one, unless they are averages of one run
    steps: int
    evaluate_every: int
    snapshots_every: int | None = None
    source: "Job | None" = None  # the run that is averaged
    process: subprocess.Popen | None = None

    @property
    def name(self) -> str:
        trials = f"trial {self.trials[0]}" if len(self.trials) == 1 else f"{len(self.trials)} trials"
        return f"{self.submission} on {self.workload}, seed {self.seed}, {trials}"

    def folder(self, trial: int) -> Path:
        study = Path(FLAGS.experiment_dir) / self.submission / f"study_{self.seed}"
        return study / f"{self.workload}_{FLAGS.framework}" / f"trial_{trial}"

    @property
    def log(self) -> Path:
        name = f"{self.submission}_{self.workload}_{self.seed}_{self.trials[0]}.txt"
        return Path(FLAGS.experiment_dir) / "logs" / name

    def done(self) -> int:
        """Updates done, as of the last checkpoint; of an average, as of its last evaluation."""
        if self.source is not None:
            tables = [self.folder(trial) / "eval_measurements.csv" for trial in self.trials]
            return min(_last_step(table) for table in tables)
        steps = [
            int(path.name.removeprefix("checkpoint_")) for path in self.folder(self.trials[0]).glob("checkpoint_*")
        ]
        return max(steps, default=0)

    def seen(self) -> int:
        """Updates done, as of the log, which is ahead of the checkpoints."""
        return max(self.done(), 0 if self.source else _last_step(self.folder(self.trials[0]) / "measurements.csv"))

    def result(self) -> str:
        """What came of it, in words."""
        workload = workloads.make(self.workload, FLAGS.framework)
        told = [summary(workload, evaluations_of(self.folder(trial))) for trial in self.trials]
        return told[0] if len(told) == 1 else f"{len(told)} averages evaluated"

    def ready(self) -> bool:
        """Whether the run that is averaged is done."""
        return self.source is None or self.source.done() >= self.source.steps

    def begin(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *(self._training() if self.source is None else self._averaging(self.source))],
                stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def _training(self) -> list[str]:
        trial = self.trials[0]
        snapshots = self.snapshots_every and [f"--save_snapshots_every_n_steps={self.snapshots_every}"]
        tuning = ["--tuning_ruleset=self"]
        if self.search_space is not None:
            one = [f"--hparam_start_index={trial - 1}", f"--hparam_end_index={trial}"]
            tuning = [f"--tuning_search_space={self.search_space}", *one]
        return [
            "scripts.run", f"--framework={FLAGS.framework}", f"--submission={self.submission}",
            f"--workload={self.workload}", *tuning,
            f"--rng_seed={self.seed}", f"--experiment_dir={FLAGS.experiment_dir}", "--resume_last_run",
            "--continue_after_target", f"--max_global_steps={self.steps}",
            f"--eval_every_n_steps={self.evaluate_every}", "--nosave_intermediate_checkpoints", *(snapshots or []),
        ]  # fmt: skip

    def _averaging(self, source: "Job") -> list[str]:
        return [
            "scripts.average_checkpoints", str(source.folder(source.trials[0]) / "snapshots"),
            f"--workload={self.workload}", f"--submission={self.submission}",
            f"--tuning_search_space={self.search_space}", f"--trials={','.join(map(str, self.trials))}",
            f"--experiment_dir={FLAGS.experiment_dir}", "--validation_only",
        ]  # fmt: skip


def _path(name: str) -> str:
    """A submission's file."""
    return f"submissions/{FLAGS.framework}/{name}/submission.py"


def _step_hint(workload: str) -> int:
    return workloads.make(workload, FLAGS.framework).step_hint


def _last_step(table: Path) -> int:
    try:
        header, *_, last = table.read_text().splitlines()
    except (OSError, ValueError):  # not there, or no evaluation in it
        return 0
    return int(last.split(",")[header.split(",").index("global_step")])


def jobs() -> list[Job]:
    """All runs asked for, seed by seed.

    Raises:
        UsageError: an unknown submission or workload, an unusable study, or files of another one.
    """
    study = comparison.load(FLAGS.study) if FLAGS.study is not None else None
    names, spaces = FLAGS.submissions, Path(FLAGS.search_spaces)
    every_workload = sorted(workloads.names(FLAGS.framework))
    chosen, seeds = FLAGS.workloads or every_workload, FLAGS.seeds or 1
    if study is not None:
        for name in ("submissions", "search_spaces"):
            if FLAGS[name].present:
                raise UsageError(f"--{name} cannot be given with --study: {FLAGS.study} says which")
        names, spaces = study.submissions, study.search_spaces
        if study.offline and FLAGS.framework != "pytorch":
            raise UsageError(f"--framework={FLAGS.framework}: {FLAGS.study} averages snapshots, which pytorch writes")
        chosen = FLAGS.workloads or study.workloads or every_workload
        seeds = FLAGS.seeds or study.seeds
    for name in names:
        if not Path(_path(name)).is_file() and (study is None or name not in comparison.MERGES):
            known = sorted(path.parent.name for path in Path().glob(_path("*")))
            raise UsageError(f"the submission {name!r} is unknown; choose from {', '.join(known)}")
    for workload in chosen:
        workloads.module_of(workload, FLAGS.framework)
    own_point = [name for name in names if study is None and not (spaces / f"{name}.json").is_file()]
    try:
        tuned = json.loads((spaces / "tuned_trials.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UsageError(f"--search_spaces={spaces}: cannot read tuned_trials.json: {error}") from None
    for name in own_point:
        try:
            submission.load(_path(name), FLAGS.framework).check_hyperparameters(None, 1000)  # of whatever length
        except ValueError as error:
            raise UsageError(f"--search_spaces={spaces} has no {name}.json, and without one: {error}") from None
    # Those of the base optimizer, where it has its own.
    by_name = {name: tuned | tuned.get(comparison.base_of(name), {}) for name in names}
    if untuned := [workload for workload in chosen if workload not in tuned]:
        raise UsageError(f"{spaces}/tuned_trials.json has no trial for {', '.join(untuned)}; see scripts.calibrate")
    steps = {workload: FLAGS.max_global_steps or _step_hint(workload) for workload in chosen}

    result: list[Job] = []
    for seed, workload in itertools.product(range(seeds), chosen):
        trials = {name: [1 if name in own_point else by_name[name][workload]] for name in names}
        files = {name: None if name in own_point else spaces / f"{name}.json" for name in names}
        points: dict[str, list[dict[str, Any]]] = {}
        if study is not None:
            trials = {name: study.trials(name, by_name[name][workload]) for name in names}
            files = {name: _search_space(study, name) for name in names}
            points = {name: study.search_space(name) for name in names}
            for name in names:
                _check_points(study, name, points[name], steps[workload])
        here = []
        for name in names if study is None else [name for name in names if study.averaged(name) is None]:
            for trial in trials[name]:
                # Once its schedule is over, a run learns nothing more.
                share = points[name][trial - 1].get("schedule_fraction", 1.0) if name in points else 1.0
                length = max(1, round(share * steps[workload]))
                every = max(1, length // FLAGS.evaluations if FLAGS.evaluations else max(length // 50, 10))
                here.append(Job(name, workload, seed, files[name], [trial], length, every))
        if study is not None:
            for name in [name for name in names if study.averaged(name) is not None]:
                here += _averages(study, name, files[name], trials[name], here, _step_hint(workload))
        result += here
    return result


def _averages(
    study: comparison.Study, name: str, search_space: Path | None, trials: list[int], there: list[Job], step_hint: int
) -> list[Job]:
    """One job for each run `there` that `name` averages; these are told to keep the snapshots that it needs."""
    points = study.search_space(name)
    result = []
    for source in [job for job in there if job.submission == study.averaged(name)]:
        ready = []
        for trial in trials:
            if study.source(name, trial) != source.trials[0]:
                continue
            average = average_of(name, SimpleNamespace(**points[trial - 1]), step_hint)
            interval = average.interval or 1
            try:
                average.members(range(interval, source.steps + 1, interval), source.steps)
            except SnapshotError:
                continue  # longer than the run
            ready.append(trial)
            source.snapshots_every = math.gcd(source.snapshots_every or 0, interval)
        if ready:
            every, steps = source.evaluate_every, source.steps
            result.append(Job(name, source.workload, source.seed, search_space, ready, steps, every, source=source))
    return result


def _check_points(study: comparison.Study, name: str, points: list[dict[str, Any]], step_hint: int) -> None:
    """A UsageError in one line if the submission cannot train with one of the points of its grid."""
    if name in comparison.MERGES:
        check = functools.partial(average_of, name)
    else:
        check = submission.load(_path(name), FLAGS.framework).check_hyperparameters
    for point in points:
        try:
            check(namedtuple("Hyperparameters", point)(**point), step_hint)
        except ValueError as error:
            raise UsageError(f"study {study.name}: grid of {name}: {error}") from None


def _search_space(study: comparison.Study, name: str) -> Path:
    """The file with a submission's points, written if it is not there."""
    path = Path(FLAGS.experiment_dir, "search_spaces", f"{name}.json")
    text = json.dumps(study.search_space(name), indent=2)
    if path.exists() and path.read_text() != text:
        raise UsageError(f"{path} is of another study: choose another --experiment_dir")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def run(waiting: list[Job]) -> list[Job]:
    """Run all, `--jobs` at a time. Returns those that failed."""
    total = sum(job.steps for job in waiting)
    finished = sum(job.steps for job in waiting if job.done() >= job.steps)
    waiting = [job for job in waiting if job.done() < job.steps]
    running: list[Job] = []
    failed: list[Job] = []
    count = len(waiting)
    with tqdm(total=total, initial=finished, unit="step", disable=None, dynamic_ncols=True, smoothing=0.02) as bar:
        try:
            while waiting or running:
                for job in [job for job in waiting if job.ready()][: FLAGS.jobs - len(running)]:
                    job.begin()
                    waiting.remove(job)
                    running.append(job)
                time.sleep(0.3)
                for job in [job for job in running if job.process is not None and job.process.poll() is not None]:
                    running.remove(job)
                    finished += job.steps
                    if job.process is not None and job.process.returncode == 0:
                        done = count - len(waiting) - len(running)
                        bar.write(f"{done}/{count} {job.name}: {job.result()}")
                        sys.stdout.flush()
                    else:
                        failed.append(job)
                        waiting = [other for other in waiting if other.source is not job]
                        bar.write(f"failed: {job.name}; see {job.log}")
                bar.set_postfix_str(f"{count - len(waiting) - len(running)}/{count} runs done", refresh=False)
                bar.update(finished + sum(job.seen() for job in running) - bar.n)
        finally:
            for job in running:  # interrupted: the runs keep their checkpoints
                if job.process is not None:
                    job.process.terminate()
    return failed


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    try:
        failed = run(jobs())
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        command_line.stopped(f"the same command goes on from the last checkpoints in {FLAGS.experiment_dir}")
    if failed:
        print(failed[0].log.read_text()[-2000:], file=sys.stderr)
        sys.exit(1)
    compare = f"python -m scripts.report --runs={FLAGS.experiment_dir}"
    compare += f" --study={FLAGS.study}" if FLAGS.study is not None else ""
    print(f"all runs are in {FLAGS.experiment_dir}; compare them: {compare}")


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parsed)
