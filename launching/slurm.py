"""Jobs on Slurm, through submitit: arrays whose jobs have names of their own, and preemption."""

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import submitit

from weight_averaging.errors import UsageError

# Of one job that are over before it gives up; submitit's own 3 are too few for a day's run in slices of four hours.
TIME_LIMITS = 30


def check() -> None:
    """UsageError where jobs cannot be submitted."""
    if shutil.which("sbatch") is None or subprocess.run(["sinfo"], capture_output=True, check=False).returncode:
        raise UsageError("--engine=slurm: there is no Slurm here, or it does not answer")


def in_queue(folder: Path) -> set[str]:
    """Names of the jobs, pending or running, that were submitted from the absolute `folder`."""
    listing = subprocess.run(
        ["squeue", "--me", "--array", "--noheader", "--format=%j %o"], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(maxsplit=1) for line in listing.splitlines()]
    return {row[0] for row in rows if len(row) == 2 and Path(row[1]).parent == folder}


def executor(folder: Path, minutes: int, gpus: int, at_a_time: int, sbatch_args: str) -> submitit.AutoExecutor:
    """Submits from the absolute `folder`, which has the logs too.

    Args:
        minutes: time limit of a job.
        gpus: of a job.
        at_a_time: jobs of an array.
        sbatch_args: further ones, as on the command line; they win.
    """
    made = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=TIME_LIMITS)
    made.update_parameters(
        timeout_min=minutes,
        nodes=1,
        tasks_per_node=1,
        **({"gpus_per_node": gpus} if gpus else {}),
        slurm_array_parallelism=at_a_time,
        slurm_additional_parameters={"requeue": True, **_parsed(sbatch_args)},
    )
    return made


def _parsed(arguments: str) -> dict[str, str | bool]:
    found: dict[str, str | bool] = {}
    for word in shlex.split(arguments):
        if not word.startswith("--"):
            raise UsageError(f"--sbatch_args: write --name or --name=value, not {word!r}")
        name, _, value = word[2:].partition("=")
        found[name.replace("-", "_")] = value or True  # as submitit spells its own
    return found


def submit(made: submitit.AutoExecutor, name: str, jobs: Mapping[str, Callable[[], None]]) -> list[str]:
    """Submit jobs, given by their names, as one array, or the only one alone; returns their ids.

    Args:
        name: of the array as a whole.
    """
    made.update_parameters(name=name)
    try:
        with made.batch():
            submitted = [made.submit(job) for job in jobs.values()]
    except submitit.core.utils.FailedJobError:
        raise UsageError("sbatch refuses the jobs, for the reason above") from None  # submitit has printed it
    for own, entry in zip(jobs, submitted, strict=True):
        # One that is over already keeps the array's.
        rename = ["scontrol", "update", f"JobId={entry.job_id}", f"JobName={own}"]
        subprocess.run(rename, capture_output=True, check=False)
    return [entry.job_id for entry in submitted]


def run(command: list[str]) -> int:
    """Run the command of a job that submitit started; returns its exit status, unless the job is preempted first.

    At its time limit a job gets SIGUSR2, on which submitit requeues it. Preempted with a grace time it gets SIGTERM, as
    does the command, which ends. With its status the job would have failed and stay out of the queue.
    """
    terminated = False

    def note(*_: object) -> None:
        nonlocal terminated
        terminated = True

    signal.signal(signal.SIGTERM, note)
    code = subprocess.run(command, check=False).returncode
    if code:
        time.sleep(1)  # a signal reaches the processes of a job one after the other
    if code and terminated:
        job = os.environ["SLURM_JOB_ID"]
        query = ["squeue", f"--job={job}", "--noheader", "--format=%A %T"]
        states = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
        if f"{job} RUNNING" in states:  # if it is cancelled, or requeued already, it is COMPLETING
            os.kill(os.getpid(), signal.SIGUSR2)
    return code
