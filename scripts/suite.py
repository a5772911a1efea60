"""Run submissions x workloads x seeds, several at a time.

    python -m scripts.suite --submissions=nadamw,lawa,ema --workloads=mini_criteo1tb --seeds=3
    python -m scripts.suite --study=studies/lawa_horizon.yaml --experiment_dir=runs/horizon

Every run is a process of its own with one thread, in <experiment_dir>/<submission>/study_<seed>. Calling the command
again skips the finished runs and continues the others, so that it can be stopped at any moment.

Of a submission's search space each workload takes one trial: the one whose learning rate is best for the baseline,
as recorded in <search_spaces>/tuned_trials.json (docs/results/calibration.md tells how it was found). A study, one of
the paper's experiments in studies/, brings its own submissions, workloads, seeds and grid of hyperparameters.
"""

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from absl import app, flags
from tqdm import tqdm

from analysis import studies
from analysis.errors import UsageError as StudyError
from miniperf import workloads
from miniperf.errors import UsageError

FLAGS = flags.FLAGS
SUBMISSIONS = Path("submissions/pytorch")

flags.DEFINE_string("study", None, "YAML file of an experiment, which sets what the next four flags do.")
flags.DEFINE_list("submissions", ["nadamw", "lawa", "ema"], "Folders of submissions/pytorch.")
flags.DEFINE_list("workloads", sorted(workloads.WORKLOADS), "Workloads.")
flags.DEFINE_integer("seeds", 1, "Runs of each, with the seeds 0, 1, ...", lower_bound=1)
flags.DEFINE_string(
    "search_spaces", "tuning_search_spaces/miniperf", "Folder with a <submission>.json each and tuned_trials.json."
)
flags.DEFINE_string("experiment_dir", "runs/suite", "Root folder of the runs.")
flags.DEFINE_integer("evaluations", 40, "Evaluations in a run, evenly spaced.", lower_bound=1)
flags.DEFINE_integer("max_global_steps", None, "Updates in a run; default: the workload's step_hint.", lower_bound=1)
flags.DEFINE_integer("jobs", os.cpu_count(), "Runs at a time.", lower_bound=1)


@dataclass
class Job:
    """One run and the process that makes it."""

    submission: str
    workload: str
    seed: int
    search_space: Path
    trial: int  # of the search space, from 1
    steps: int
    process: subprocess.Popen | None = None

    @property
    def name(self) -> str:
        return f"{self.submission} on {self.workload}, seed {self.seed}, trial {self.trial}"

    @property
    def folder(self) -> Path:
        study = Path(FLAGS.experiment_dir) / self.submission / f"study_{self.seed}"
        return study / f"{self.workload}_pytorch" / f"trial_{self.trial}"

    @property
    def log(self) -> Path:
        return Path(FLAGS.experiment_dir) / "logs" / f"{self.submission}_{self.workload}_{self.seed}_{self.trial}.txt"

    def done(self) -> int:
        """Updates done, as of the last checkpoint."""
        steps = [int(path.name.removeprefix("checkpoint_")) for path in self.folder.glob("checkpoint_*")]
        return max(steps, default=0)

    def begin(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable, "-m", "scripts.run", f"--submission={self.submission}", f"--workload={self.workload}",
            f"--rng_seed={self.seed}", f"--experiment_dir={FLAGS.experiment_dir}", "--resume_last_run",
            f"--tuning_search_space={self.search_space}", "--continue_after_target",
            f"--hparam_start_index={self.trial - 1}", f"--hparam_end_index={self.trial}",
            f"--max_global_steps={self.steps}",
            f"--eval_every_n_steps={max(1, self.steps // FLAGS.evaluations)}", "--nosave_intermediate_checkpoints",
        ]  # fmt: skip
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )


def jobs() -> list[Job]:
    """All runs asked for, seed by seed. UsageError for an unknown submission or workload, or an unusable study."""
    try:
        study = studies.load(FLAGS.study) if FLAGS.study is not None else None
    except StudyError as error:
        raise UsageError(str(error)) from None
    names, chosen, seeds, spaces = FLAGS.submissions, FLAGS.workloads, FLAGS.seeds, Path(FLAGS.search_spaces)
    if study is not None:
        names, seeds, spaces = study.submissions, study.seeds, study.search_spaces
        chosen = study.workloads or sorted(workloads.WORKLOADS)
    for name in names:
        if not (SUBMISSIONS / name / "submission.py").is_file():
            known = sorted(path.parent.name for path in SUBMISSIONS.glob("*/submission.py"))
            raise UsageError(f"the submission {name!r} is unknown; choose from {', '.join(known)}")
    steps = {workload: FLAGS.max_global_steps or workloads.make(workload).step_hint for workload in chosen}
    try:
        tuned = json.loads((spaces / "tuned_trials.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UsageError(f"--search_spaces={spaces}: cannot read tuned_trials.json: {error}") from None
    if untuned := [workload for workload in chosen if workload not in tuned]:
        raise UsageError(f"{spaces}/tuned_trials.json has no trial for {', '.join(untuned)}; see scripts.calibrate")

    def files_and_trials(name: str, workload: str) -> tuple[Path, list[int]]:
        if study is None:
            return spaces / f"{name}.json", [tuned[workload]]
        path = Path(FLAGS.experiment_dir, "search_spaces", f"{name}.json")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(study.search_space(name), indent=2))
        return path, study.trials(name, tuned[workload])

    result = []
    for seed, workload, name in itertools.product(range(seeds), chosen, names):
        path, trials = files_and_trials(name, workload)
        result += [Job(name, workload, seed, path, trial, steps[workload]) for trial in trials]
    return result


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
                while waiting and len(running) < FLAGS.jobs:
                    waiting[0].begin()
                    running.append(waiting.pop(0))
                time.sleep(0.3)
                for job in [job for job in running if job.process is not None and job.process.poll() is not None]:
                    running.remove(job)
                    finished += job.steps
                    if bar.disable:  # no terminal: a line a run
                        print(f"{count - len(waiting) - len(running)}/{count} {job.name}", flush=True)
                    if job.process is not None and job.process.returncode:
                        failed.append(job)
                        bar.write(f"failed: {job.name}; see {job.log}")
                bar.set_postfix_str(f"{count - len(waiting) - len(running)}/{count} runs done", refresh=False)
                bar.update(finished + sum(job.done() for job in running) - bar.n)
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
    if failed:
        print(failed[0].log.read_text()[-2000:], file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
