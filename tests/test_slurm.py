"""Sweeps on a real Slurm: names, jobs that are stopped in every way Slurm has, and cancelling. Skipped without one."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("submitit")

from tests.test_runner import assert_same_end

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


def begun(folder: Path, number: int) -> bool:
    """Whether there is something to resume from, of more than the first update."""
    return any(path.name != "checkpoint_1" for path in trial(folder, number).glob("checkpoint_*"))


def logs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted((folder / "sweep/logs").glob("*_log.*")))


def preemptions(folder: Path, number: int) -> list[int]:
    return list(pd.read_csv(trial(folder, number) / "eval_measurements.csv")["preemption_count"])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Iterator[Callable[[], Path]]:
    """Trains beside the jobs; a call waits for the end and gives the folder."""
    folder = tmp_path_factory.mktemp("unbroken")
    process = python(
        "scripts.run", "--submission=lawa", "--workload=mini_criteo1tb", f"--num_tuning_trials={len(TRIALS)}",
        "--rng_seed=1", f"--experiment_dir={folder}", "--nosave_intermediate_checkpoints", *FLAGS.split(),
    )  # fmt: skip

    def finished() -> Path:
        assert process.wait() == 0, process.stdout.read()
        return folder

    yield finished
    process.kill()
    process.communicate()


STOPS = {
    1: ["scancel", "--signal=TERM"],  # preempted with a grace time
    2: ["scancel", "--signal=USR2"],  # near the time limit
    3: ["scontrol", "requeue"],  # preempted at once, or the node failed: SIGKILL
}


def test_jobs_that_are_stopped_resume_to_the_result_of_an_unbroken_run(unbroken, tmp_path):
    array = array_of(sweep(tmp_path, "--jobs=1"))
    names = {job: name for job, (name, _) in queue(array).items()}
    assert names == {f"{array}_{number - 1}": f"mini_criteo1tb-lawa-study_1-trial_{number}" for number in TRIALS}

    for number, command in STOPS.items():
        job = f"{array}_{number - 1}"
        until(lambda number=number: begun(tmp_path, number), f"training of trial {number}")
        subprocess.run([*command, job], check=True)
        until(lambda job=job: queue(array).get(job, ("", ""))[1] == "PENDING", f"{job}, requeued; " + logs(tmp_path))
        assert not (trial(tmp_path, number) / f"checkpoint_{STEPS}").exists(), "over before it was stopped"
    for job in names:  # Slurm would hold them back for two minutes
        subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now", "ArrayTaskThrottle=2"], check=True)
    until(lambda: not queue(array), "the jobs")

    for number in TRIALS:
        assert (tmp_path / f"sweep/mini_criteo1tb-lawa-study_1-trial_{number}.done").exists(), logs(tmp_path)
        assert preemptions(tmp_path, number)[-1] == 1
        assert_same_end(trial(unbroken(), number), trial(tmp_path, number))
    rates = [json.loads((trial(tmp_path, number) / "hparams.json").read_text())["learning_rate"] for number in TRIALS]
    assert rates == [point["learning_rate"] for point in json.loads(Path(SPACE).read_text())[: len(TRIALS)]]


def test_a_cancelled_sweep_is_continued_by_the_same_command(unbroken, tmp_path):
    array = array_of(sweep(tmp_path, "--jobs=1"))
    until(lambda: begun(tmp_path, 2), "the second job")  # the first is over then: one at a time
    assert "0 of 3 jobs to run, 2 in the queue" in sweep(tmp_path, "--jobs=1")
    subprocess.run(["scancel", array], check=True)
    until(lambda: not queue(array), "the array's end")
    first = (trial(tmp_path, 1) / f"checkpoint_{STEPS}").stat().st_mtime_ns
    assert not (trial(tmp_path, 2) / f"checkpoint_{STEPS}").exists(), "over before it was cancelled"
    assert not trial(tmp_path, 3).exists()

    output = sweep(tmp_path, "--jobs=2")
    assert "2 of 3 jobs to run" in output
    until(lambda: not queue(array_of(output)), "the jobs")
    assert (trial(tmp_path, 1) / f"checkpoint_{STEPS}").stat().st_mtime_ns == first
    assert preemptions(tmp_path, 2)[-1] == 1
    for number in TRIALS:
        assert_same_end(trial(unbroken(), number), trial(tmp_path, number))
    assert "0 of 3 jobs to run" in sweep(tmp_path)


def test_wrong_arguments_of_sbatch_are_one_line(tmp_path):
    output = sweep(tmp_path, "--sbatch_args=partition=debug", status=2)
    assert "error: --sbatch_args: write --name or --name=value, not 'partition=debug'" in output
    output = sweep(tmp_path, "--sbatch_args=--partition=nowhere", status=2)
    assert "invalid partition specified: nowhere" in output
    assert output.splitlines()[-1] == "error: sbatch refuses the jobs, for the reason above"
