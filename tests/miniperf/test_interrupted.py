"""Ctrl-C: one line says how to go on, nothing is left at work, and that goes on. The suite is in test_suite.py."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.support.warm_python import python

SIGNALS = [signal.SIGINT, signal.SIGTERM]


def interrupted(command: list[str], when: Callable[[], object], number: int = signal.SIGINT) -> list[str]:
    """The lines on stderr of a command that is sent a signal `when` it is time; shells let their jobs ignore SIGINT.

    Not by the warm Python, which has JAX: an interrupt in its callback of the garbage collection is swallowed.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    while not when():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said
    return said.splitlines()


def steps(folder: Path) -> list[int]:
    return list(pd.read_csv(folder / "eval_measurements.csv")["global_step"])


def processes_of(folder: Path) -> list[str]:
    """The commands of those at work that are given this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [command for command in found if str(folder) in command]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_run(tmp_path, number):
    base = ["scripts.run", "--submission=lawa", "--workload=mini_imagenet_vit", f"--experiment_dir={tmp_path}"]
    base += ["--num_tuning_trials=1", "--max_global_steps=60", "--eval_every_n_steps=5"]
    trial = tmp_path / "lawa/study_0/mini_imagenet_vit_pytorch/trial_1"
    said = interrupted(base, lambda: (trial / "checkpoint_5").exists(), number)
    assert said[-1] == "stopped: the same command with --resume_last_run goes on from the last checkpoint"
    done = max(int(path.name.removeprefix("checkpoint_")) for path in trial.glob("checkpoint_*"))
    assert done < 60
    assert not [path for path in trial.iterdir() if path.name.startswith(".")]
    again = subprocess.run([python(), "-m", *base, "--resume_last_run"], capture_output=True, text=True, check=True)
    assert f"step {done + 5:>6}" in again.stdout
    assert f"step {done:>6}" not in again.stdout
    table = pd.read_csv(trial / "eval_measurements.csv").set_index("global_step")["validation/accuracy"]
    *_, came, following = again.stdout.splitlines()  # what came out: value, place, files; and the next command
    said = f"{trial}: best validation/accuracy {table.max():.5g} at update {table.idxmax()} of 60, target "
    assert came.startswith(said)
    assert following == f"next: python -m scripts.report --runs={tmp_path}"
    assert steps(trial) == [1, *range(5, 61, 5)]
    assert sorted(path.name for path in trial.glob("checkpoint_*")) == ["checkpoint_55", "checkpoint_60"]  # no more


def test_a_sweep_and_its_jobs(tmp_path):
    pytest.importorskip("submitit")
    command = [
        "scripts.sweep", "--submission=lawa", "--harness=miniperf", "--workloads=mini_imagenet_vit",
        f"--experiment_dir={tmp_path}", "--num_tuning_trials=2",
        "--run_flags=--max_global_steps=100000 --eval_every_n_steps=5",
    ]  # fmt: skip
    trial = tmp_path / "lawa/study_1/mini_imagenet_vit_pytorch/trial_1"
    said = interrupted(command, lambda: (trial / "checkpoint_5").exists() and len(processes_of(tmp_path)) > 1)
    assert said[-1] == "stopped: the same command goes on from the last checkpoints"
    assert not processes_of(tmp_path)  # nobody trains on
    assert not list(tmp_path.glob("sweep/*.done"))


@pytest.mark.parametrize("number", SIGNALS)
def test_averages_of_checkpoints(tmp_path, number):
    for step in range(1, 41):
        torch.save({"w": torch.zeros(1_000_000)}, tmp_path / f"step_{step}.pt")
    command = ["scripts.average_checkpoints", str(tmp_path), "--lawa=window=40", f"--out={tmp_path / 'out' / 'x.pt'}"]
    said = interrupted(command, (tmp_path / "out").exists, number)  # it reads
    assert said[-1] == "stopped: the same command starts anew"
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("few_held_out_images")
def test_averages_evaluated_on_a_workload(tmp_path):
    from tests.miniperf.test_runner import settings_of, train, trial

    home = tmp_path / "nadamw/study_0/mini_imagenet_vit_pytorch/trial_1"
    train(home, trial(tmp_path, "nadamw"), settings_of("nadamw", steps=16, every=1))
    command = ["scripts.average_checkpoints", str(home), "--workload=mini_imagenet_vit", f"--experiment_dir={tmp_path}"]
    command += ["--lawa=window=2", "--validation_only"]
    made = tmp_path / "offline_lawa/study_0/mini_imagenet_vit_pytorch/trial_1"
    said = interrupted(command, (made / "eval_measurements.csv").exists)
    assert said[-1] == "stopped: the same command goes on from there"
    first = steps(made)
    assert len(first) < 15
    again = subprocess.run([python(), "-m", *command], check=True, capture_output=True, text=True)
    table = pd.read_csv(made / "eval_measurements.csv").set_index("global_step")["validation/accuracy"]
    assert f"  best validation/accuracy {table.max():.5g} at update {table.idxmax()} of 16, target" in again.stdout
    assert again.stdout.splitlines()[-1] == f"next: python -m scripts.report --runs={tmp_path}"
    assert steps(made) == list(range(2, 17))
