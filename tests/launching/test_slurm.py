"""Sweeps on a real Slurm: names, jobs that are stopped in every way Slurm has, and cancelling. Skipped without one."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("submitit")

from tests.launching.rehearsal.records import STAND_IN
from tests.miniperf.test_runner import assert_same_end

STEPS = 600
FLAGS = f"--max_global_steps={STEPS} --eval_every_n_steps=50 --continue_after_target"
TRIALS = (1, 2, 3)
SPACE = "tuning_search_spaces/miniperf/lawa.json"


def answers() -> bool:
    return shutil.which("sinfo") is not None and subprocess.run(["sinfo"], capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not answers(), reason="no Slurm answers here")


def python(*arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def sweep(folder: Path, *flags: str, status: int = 0) -> str:
    process = python(
        "scripts.sweep", "--submission=lawa", "--harness=miniperf", "--engine=slurm", "--workloads=mini_criteo1tb",
        f"--num_tuning_trials={len(TRIALS)}", f"--experiment_dir={folder}", f"--run_flags={FLAGS}", *flags,
    )  # fmt: skip
    output = process.communicate()[0]
    assert process.returncode == status, output
    return output


def array_of(output: str) -> str:
    """The id in `mini_criteo1tb: submitted 17_0 ... 17_2`."""
    return output.split(": submitted ")[1].split("_")[0]


def queue(array: str) -> dict[str, tuple[str, str]]:
    """Of each job that is not over: its name and state."""
    command = ["squeue", "--array", "--noheader", "--format=%i %j %T"]
    rows = [line.split() for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines()]
    return {job: (name, state) for job, name, state in rows if job.split("_")[0] == array}


def until(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.1)


def trial(folder: Path, number: int) -> Path:
    return folder / f"lawa/study_1/mini_criteo1tb_pytorch/trial_{number}"


def checkpoints(folder: Path, number: int) -> set[str]:
    return {path.name for path in trial(folder, number).glob("checkpoint_*")}


def begun(folder: Path, number: int) -> bool:
    """Whether there is something to resume from, of more than the first update."""
    return bool(checkpoints(folder, number) - {"checkpoint_1"})


def ended(folder: Path, number: int) -> bool:
    return f"checkpoint_{STEPS}" in checkpoints(folder, number)


def done(folder: Path, number: int) -> Path:
    return folder / f"sweep/mini_criteo1tb-lawa-study_1-trial_{number}.done"


def logs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted((folder / "sweep/logs").glob("*_log.*")))


def waits(array: str, job: str) -> bool:
    return queue(array).get(job, ("", ""))[1] == "PENDING"


def release(job: str) -> None:
    """Slurm would hold a requeued job back for two minutes."""
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)


STOPS = {
    1: ["scancel", "--signal=TERM"],  # preempted with a grace time
    2: ["scancel", "--signal=USR2"],  # near the time limit
    3: ["scontrol", "requeue"],  # preempted at once, or the node failed: SIGKILL
}


def test_a_sweep_that_is_stopped_in_every_way_ends_like_an_unbroken_one(tmp_path):
    unbroken, folder = tmp_path / "unbroken", tmp_path / "sweep"
    reference = python(
        "scripts.run", "--submission=lawa", "--workload=mini_criteo1tb", f"--num_tuning_trials={len(TRIALS)}",
        "--rng_seed=1", f"--experiment_dir={unbroken}", "--nosave_intermediate_checkpoints", *FLAGS.split(),
    )  # fmt: skip
    array = array_of(sweep(folder, "--jobs=1"))
    jobs = {number: f"{array}_{number - 1}" for number in TRIALS}
    names = {job: name for job, (name, _) in queue(array).items()}
    assert names == {jobs[number]: f"mini_criteo1tb-lawa-study_1-trial_{number}" for number in TRIALS}

    for number, command in STOPS.items():
        until(lambda number=number: begun(folder, number), f"training of trial {number}")
        subprocess.run([*command, jobs[number]], check=True)
        until(lambda number=number: waits(array, jobs[number]), f"trial {number}, requeued\n{logs(folder)}")
        assert not ended(folder, number), "over before it was stopped"
    release(jobs[1])
    until(lambda: done(folder, 1).exists(), f"the end of trial 1\n{logs(folder)}")

    assert "0 of 3 jobs to run, 2 in the queue" in sweep(folder)
    before = checkpoints(folder, 2)
    release(jobs[2])
    until(lambda: checkpoints(folder, 2) != before, "trial 2, resumed")
    subprocess.run(["scancel", array], check=True)  # one running, one pending
    until(lambda: not queue(array), "the array's end")
    assert not ended(folder, 2), "over before it was cancelled"
    first = done(folder, 1).stat().st_mtime_ns
    output = sweep(folder, "--jobs=2")
    assert "2 of 3 jobs to run" in output
    until(lambda: not queue(array_of(output)), f"the jobs\n{logs(folder)}")
    assert "0 of 3 jobs to run" in sweep(folder)

    assert done(folder, 1).stat().st_mtime_ns == first
    assert reference.wait() == 0, reference.stdout.read()
    points = json.loads(Path(SPACE).read_text())
    for number, preemptions in {1: 1, 2: 2, 3: 1}.items():
        assert done(folder, number).exists(), logs(folder)
        table = pd.read_csv(trial(folder, number) / "eval_measurements.csv")
        assert table["preemption_count"].iloc[-1] == preemptions
        hyperparameters = json.loads((trial(folder, number) / "hparams.json").read_text())
        assert hyperparameters["learning_rate"] == points[number - 1]["learning_rate"]
        assert_same_end(trial(unbroken, number), trial(folder, number))


def test_wrong_arguments_of_sbatch_are_one_line(tmp_path):
    output = sweep(tmp_path, "--sbatch_args=partition=debug", status=2)
    assert "error: --sbatch_args: write --name or --name=value, not 'partition=debug'" in output
    output = sweep(tmp_path, "--sbatch_args=--partition=nowhere", status=2)
    assert "invalid partition specified: nowhere" in output
    assert output.splitlines()[-1] == "error: sbatch refuses the jobs, for the reason above"


def test_a_rehearsal_is_one_job(tmp_path):
    process = python(
        "scripts.rehearse", "--workload=criteo1tb", "--submission=lawa", "--gpus=0", STAND_IN, "--engine=slurm",
        f"--data_dir={tmp_path / 'data'}", f"--out={tmp_path / 'out'}", f"--sbatch_args=--output={tmp_path / 'said'}",
    )  # fmt: skip
    output = process.communicate()[0]
    assert process.returncode == 0, output
    job = output.split()[-1]
    until(lambda: not queue_of(job), "the job", 600)
    assert "1 of 1 passed" in (tmp_path / "said").read_text()


def queue_of(job: str) -> str:
    command = ["squeue", f"--job={job}", "--noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
