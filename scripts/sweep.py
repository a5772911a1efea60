"""Trials x studies x workloads of one submission, each trial a job that can be stopped and continued.

    python -m scripts.sweep --submission=lawa --workloads=ogbg,wmt --studies=3 --gpus=8 --engine=slurm --dry_run

On this machine --jobs run at a time; on Slurm every workload is an array, whose jobs are requeued when preempted or out
of time. The same command again continues a sweep that was cancelled. Jobs that are finished or still in Slurm's queue
are left out, the others resume from their checkpoints. A submission without a search space tunes itself: it has one
trial.
"""

import shlex
import sys
from pathlib import Path

from absl import flags

from launching import slurm, sweep
from miniperf import frameworks
from scripts.start import start
from weight_averaging.words import counted

FLAGS = flags.FLAGS

flags.DEFINE_string("submission", None, "Name of the submission, a folder of submissions/<framework>.", required=True)
flags.DEFINE_enum("framework", "pytorch", frameworks.NAMES, "Framework of the submission.")
flags.DEFINE_list("workloads", None, "Names of workloads, with commas between.", required=True)
flags.DEFINE_integer("studies", 1, "Number of studies: runs of every trial, with the seeds 1, 2, ...", lower_bound=1)
flags.DEFINE_string("tuning_search_space", None, "File of the search space (JSON); default: the submission's own.")
flags.DEFINE_integer("num_tuning_trials", None, "Number of trials; default: all points of a list.", lower_bound=1)
flags.DEFINE_integer("space_seed", 0, "Random seed with which points are drawn from a dict of ranges.")
flags.DEFINE_enum(
    "harness", "official", ["miniperf", "official"], "Runner that trains: miniperf, on CPUs, or the official harness."
)
flags.DEFINE_enum("engine", "local", ["local", "slurm"], "Place where the jobs run: this machine or Slurm.")
flags.DEFINE_integer("jobs", 1, "Number of jobs at a time; on Slurm, of each workload.", lower_bound=1)
flags.DEFINE_integer(
    "gpus", 0, "Number of GPUs in a job, each with a rank of its own. 0 trains on the CPU.", lower_bound=0
)
flags.DEFINE_integer(
    "minutes", 24 * 60, "Time limit of a job in minutes, after which it is resumed, with --engine=slurm.", lower_bound=1
)
flags.DEFINE_string(
    "sbatch_args", "", "Further arguments for sbatch, with --engine=slurm: '--partition=gpu --cpus-per-task=64'."
)
flags.DEFINE_string("run_flags", "", "Further flags for scripts.run: '--data_dir=/data --max_global_steps=100'.")
flags.DEFINE_string(
    "experiment_dir", "runs", "Root folder of the runs. The sweep keeps its own files in the folder `sweep` there."
)
flags.DEFINE_boolean("dry_run", False, "List the jobs and what they may cost. Nothing is started.")


def asked() -> sweep.Sweep:
    """What the flags ask for."""
    return sweep.Sweep(
        submission=FLAGS.submission,
        framework=FLAGS.framework,
        workloads=FLAGS.workloads,
        studies=FLAGS.studies,
        search_space=FLAGS.tuning_search_space,
        num_tuning_trials=FLAGS.num_tuning_trials,
        space_seed=FLAGS.space_seed,
        harness=FLAGS.harness,
        gpus=FLAGS.gpus,
        run_flags=shlex.split(FLAGS.run_flags),
        experiment_dir=Path(FLAGS.experiment_dir).absolute(),
    )


def run() -> None:
    """List the jobs, or start those that are neither finished nor in Slurm's queue."""
    on_slurm = FLAGS.engine == "slurm" and not FLAGS.dry_run
    if on_slurm:
        slurm.check()  # before anything is written
    jobs = asked().jobs(write=not FLAGS.dry_run)
    logs = Path(FLAGS.experiment_dir).absolute() / sweep.FOLDER / "logs"
    queued = slurm.in_queue(logs) if on_slurm else set()
    waiting = {job: cost for job, cost in jobs if job.name not in queued and not job.finished()}
    if FLAGS.dry_run:
        for job, cost in waiting.items():
            print(f"{job.name}: {sweep.text_of([cost])}")
        print("each runs: " + shlex.join(next(iter(waiting)).command()) if waiting else "nothing to do")
    in_queue = f", {len(queued)} in the queue" if queued else ""
    print(f"{len(waiting)} of {counted(len(jobs), 'job')} to run{in_queue}: {sweep.text_of(list(waiting.values()))}")
    if FLAGS.dry_run:
        return
    report = f"python -m scripts.report --runs={FLAGS.experiment_dir}"
    if FLAGS.engine == "slurm":
        sweep.submit(list(waiting), slurm.executor(logs, FLAGS.minutes, FLAGS.gpus, FLAGS.jobs, FLAGS.sbatch_args))
        print(f"when they are done: {report}")
        return
    if sweep.start_here(list(waiting), FLAGS.jobs, FLAGS.gpus):
        sys.exit(1)
    print(f"next: {report}")


if __name__ == "__main__":
    start(run, "the same command goes on from the last checkpoints")
