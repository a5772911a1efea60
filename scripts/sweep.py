"""Trials x studies x workloads of one submission, each trial a job that can be stopped and continued.

    python -m scripts.sweep --submission=lawa --workloads=ogbg,wmt --studies=3 --gpus=8 --engine=slurm --dry_run

On this machine --jobs run at a time; on Slurm every workload is an array, whose jobs are requeued when preempted or
out of time. The same command again continues a sweep that was cancelled: jobs that are finished or still in Slurm's
queue are left out, the others resume from their checkpoints. A submission without a search space tunes itself: it has
one trial.
"""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from launching import official, slurm, sweep
from launching.official_workloads import base_name
from miniperf import frameworks, search, submission, workloads
from miniperf.logs import evaluations_of
from miniperf.progress import summary
from scripts.start import start
from weight_averaging.errors import UsageError

FLAGS = flags.FLAGS

flags.DEFINE_string("submission", None, "A folder of submissions/<framework>.", required=True)
flags.DEFINE_enum("framework", "pytorch", frameworks.NAMES, "Framework of the submission.")
flags.DEFINE_list("workloads", None, "Workloads.", required=True)
flags.DEFINE_integer("studies", 1, "Runs of every trial, with the seeds 1, 2, ...", lower_bound=1)
flags.DEFINE_string("tuning_search_space", None, "Default: the submission's own.")
flags.DEFINE_integer("num_tuning_trials", None, "Trials; default: all points of a list.", lower_bound=1)
flags.DEFINE_integer("space_seed", 0, "Of the draw from a dict of ranges.")
flags.DEFINE_enum("harness", "official", ["miniperf", "official"], "Which runner.")
flags.DEFINE_enum("engine", "local", ["local", "slurm"], "Where the jobs run.")
flags.DEFINE_integer("jobs", 1, "Jobs at a time; on Slurm of each workload.", lower_bound=1)
flags.DEFINE_integer("gpus", 0, "GPUs of a job, each a rank.", lower_bound=0)
flags.DEFINE_integer("minutes", 24 * 60, "On Slurm, the time limit of a job, after which it is resumed.", lower_bound=1)
flags.DEFINE_string("sbatch_args", "", "Further arguments of sbatch: '--partition=gpu --cpus-per-task=64'.")
flags.DEFINE_string("run_flags", "", "Further flags of scripts.run: '--data_dir=/data --max_global_steps=100'.")
flags.DEFINE_string("experiment_dir", "runs", "Root folder of the runs; `sweep` in it is the sweep's own.")
flags.DEFINE_boolean("dry_run", False, "List the jobs and what they may cost; start nothing.")


def plan() -> tuple[list[sweep.Job], list[sweep.Cost]]:
    """All jobs and what each may cost. UsageError for anything unknown."""
    path = Path("submissions", FLAGS.framework, FLAGS.submission, "submission.py")
    if not path.is_file():
        raise UsageError(f"--submission={FLAGS.submission} is unknown; it is a folder of {path.parent.parent}")
    official_run = FLAGS.harness == "official"
    for name in FLAGS.workloads:
        base_name(name) if official_run else workloads.make(name, FLAGS.framework)
        if official_run:
            official.check_batch_size(name, FLAGS.gpus)
    own = {search.default_path(FLAGS.submission, name, official_run) for name in FLAGS.workloads}
    if FLAGS.tuning_search_space is None and len(own) > 1:
        raise UsageError(
            f"--workloads have search spaces of their own ({', '.join(sorted(map(str, own)))}): sweep them one by one"
        )
    source = FLAGS.tuning_search_space or own.pop()
    ruleset = "self" if source is None else "external"
    trials = search.trials(ruleset, source, FLAGS.num_tuning_trials, FLAGS.space_seed)
    for name in FLAGS.workloads:
        if official_run:
            official.check_trials(str(path), source, trials, name, FLAGS.framework)
        elif source is None:
            module = submission.load(str(path), FLAGS.framework)
            submission.check_trials(module, trials, workloads.make(name, FLAGS.framework).step_hint)
    root = Path(FLAGS.experiment_dir).absolute()
    space = None if source is None else root / "sweep" / Path(source).name
    if source is not None and space is not None:
        points = sweep.expand(source, FLAGS.num_tuning_trials, FLAGS.space_seed, space, write=not FLAGS.dry_run)
    else:
        points = [submission.load(str(path), FLAGS.framework).recipe.point]
    extra = (*([f"--gpus={FLAGS.gpus}"] if official_run else []), *shlex.split(FLAGS.run_flags))
    ranks = 1 if official_run else max(1, FLAGS.gpus)
    common = {"ranks": ranks, "trials": len(points), "experiment_dir": str(root), "flags": extra}
    common["space"] = None if space is None else str(space)
    jobs, costs = [], []
    for workload in FLAGS.workloads:
        for study in range(1, FLAGS.studies + 1):
            for trial, point in enumerate(points, start=1):
                jobs.append(
                    sweep.Job(FLAGS.harness, FLAGS.framework, workload, FLAGS.submission, study, trial, **common)
                )
                cost = sweep.cost(workload, FLAGS.gpus, point, source is None) if official_run else sweep.Cost({}, 0.0)
                costs.append(cost)
    return jobs, costs


def start_here(waiting: list[sweep.Job], logs: Path) -> int:
    """Run --jobs at a time on this machine, each on GPUs of its own, and wait. Returns how many failed."""
    logs.mkdir(parents=True, exist_ok=True)
    left, failed = list(waiting), 0
    running: dict[int, tuple[sweep.Job, subprocess.Popen]] = {}  # by the slot, to which GPUs belong
    try:
        while left or running:
            for slot in [slot for slot in range(FLAGS.jobs) if slot not in running][: len(left)]:
                running[slot] = left[0], _begin(left.pop(0), slot, logs)
            time.sleep(0.2)
            for slot, (job, process) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[slot]
                if process.returncode:
                    failed += 1
                    print(f"failed: {job.name}; see {logs / job.name}.txt", file=sys.stderr)
                else:
                    job.marker.touch()
                    print(f"done: {job.name}{_result(job)}", flush=True)
    finally:  # after Ctrl-C, of which a terminal has told them already, some are left
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()
    return failed


def _result(job: sweep.Job) -> str:
    """What came of a job under miniperf; what the official harness looks for, its report knows."""
    if job.harness == "official":
        return ""
    return f": {summary(workloads.make(job.workload, job.framework), evaluations_of(job.folder))}"


def _begin(job: sweep.Job, slot: int, logs: Path) -> subprocess.Popen:
    gpus = ",".join(str(number) for number in range(slot * FLAGS.gpus, (slot + 1) * FLAGS.gpus))
    path = logs / f"{job.name}.txt"
    print(f"{job.name}: what it says goes to {path}", flush=True)
    with open(path, "a") as file:
        return subprocess.Popen(
            job.command(), stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "CUDA_VISIBLE_DEVICES": gpus}
        )


def start_on_slurm(waiting: list[sweep.Job], logs: Path) -> None:
    made = slurm.executor(logs, FLAGS.minutes, FLAGS.gpus, FLAGS.jobs, FLAGS.sbatch_args)
    for workload in dict.fromkeys(job.workload for job in waiting):
        jobs = {job.name: job for job in waiting if job.workload == workload}
        ids = slurm.submit(made, f"{workload}-{FLAGS.submission}", jobs)
        print(f"{workload}: submitted {ids[0]}" + (f" ... {ids[-1]}" if len(ids) > 1 else ""))


def run() -> None:
    """List the jobs, or start those that are neither finished nor in Slurm's queue."""
    jobs, costs = plan()
    logs = Path(FLAGS.experiment_dir).absolute() / "sweep" / "logs"
    queued: set[str] = set()
    if FLAGS.engine == "slurm" and not FLAGS.dry_run:
        slurm.check()
        queued = slurm.in_queue(logs)
    waiting = [
        (job, cost) for job, cost in zip(jobs, costs, strict=True) if job.name not in queued and not job.marker.exists()
    ]
    if FLAGS.dry_run:
        for job, cost in waiting:
            print(f"{job.name}: {sweep.text_of([cost])}")
        print("each runs: " + shlex.join(waiting[0][0].command()) if waiting else "nothing to do")
    in_queue = f", {len(queued)} in the queue" if queued else ""
    total = sweep.text_of([cost for _, cost in waiting])
    print(f"{len(waiting)} of {len(jobs)} jobs to run{in_queue}: {total}")
    if FLAGS.dry_run:
        return
    report = f"python -m scripts.report --runs={FLAGS.experiment_dir}"
    if FLAGS.engine == "slurm":
        start_on_slurm([job for job, _ in waiting], logs)
        print(f"when they are done: {report}")
        return
    if start_here([job for job, _ in waiting], logs):
        sys.exit(1)
    print(f"next: {report}")


if __name__ == "__main__":
    start(run, "the same command goes on from the last checkpoints")
