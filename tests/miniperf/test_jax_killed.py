"""A run in JAX that is killed in an update, in an evaluation and in half a checkpoint ends like an unbroken one."""

import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("flax")

from miniperf import checkpoints
from miniperf.frameworks.jax import FRAMEWORK as JAX
from tests.miniperf.test_runner import leaves
from tests.support.warm_python import python

RUN = """
import io, os, signal, sys
from absl import app
from miniperf import spec, submission_runner
from miniperf.frameworks.jax import Jax
from miniperf.workloads.imagenet_vit.data import ImagenetVitData
from miniperf.workloads.speech import data as speech

ImagenetVitData.batch_size = 16
speech.SPLIT_SIZES = {"train": 64, "validation": 24, "test": 24}
kind, call = sys.argv.pop(1), int(sys.argv.pop(1))
owner, name = {"update": (Jax, "wait"), "evaluation": (spec.Workload, "eval_model"), "file": (Jax, "write")}[kind]
original, calls = getattr(owner, name), 0


def watched(self, *arguments):
    global calls
    calls += 1
    if calls == call:
        if kind == "file":
            whole = io.BytesIO()
            original(self, arguments[0], whole)
            arguments[1].write(whole.getvalue()[: whole.tell() // 2])
            arguments[1].flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *arguments)


setattr(owner, name, watched)
app.run(submission_runner.main)
"""
STEPS = 12
AVERAGING = {
    "lawa": '"averaging_interval": 2, "averaging_window": 2',
    "ema": '"averaging_interval": 2, "averaging_decay": 0.5',
}
POINT = """[{"learning_rate": 0.01, "one_minus_beta1": 0.1, "beta2": 0.99, "weight_decay": 0.1, "warmup_factor": 0.001,
"dropout_rate": 0.1, "averaging_interval": 2, %s}]"""


def run(folder: Path, workload: str, submission: str, kind: str, call: int) -> int:
    """In a process of its own, which dies in that call. Returns its exit status."""
    space = folder / "space.json"
    space.write_text(POINT % AVERAGING[submission])
    command = [
        python(), "-c", RUN, kind, str(call), "--framework=jax", f"--workload={workload}",
        f"--submission_path=submissions/jax/{submission}/submission.py", f"--tuning_search_space={space}",
        f"--experiment_dir={folder}", "--experiment_name=x", f"--max_global_steps={STEPS}", "--eval_every_n_steps=4",
        "--rng_seed=2", "--resume_last_run", "--continue_after_target",
    ]  # fmt: skip
    environment = {**os.environ, "MINIPERF_CACHE": str(folder.parent / "cache")}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode in (0, -signal.SIGKILL), result.stderr[-3000:]
    return result.returncode


@pytest.mark.parametrize(
    ("workload", "submission"),
    [
        ("mini_imagenet_vit", "lawa"),
        pytest.param("mini_librispeech_deepspeech", "ema", marks=pytest.mark.heavy),
    ],
)
def test_a_killed_run_ends_like_an_unbroken_one(tmp_path, workload, submission):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    assert run(whole, workload, submission, "update", 1000) == 0
    # Checkpoints are written after the updates 1, 4, 8 and 12: it dies in the second, then in the second evaluation
    # from there, with the average in the place of the weights, then in the update after the third.
    for kind, call in (("file", 2), ("evaluation", 2), ("update", 6)):
        assert run(broken, workload, submission, kind, call) == -signal.SIGKILL
    assert run(broken, workload, submission, "update", 1000) == 0

    trials = [folder / "x" / f"{workload}_jax" / "trial_1" for folder in (whole, broken)]
    a, b = (checkpoints.load_latest(JAX, trial, {})[1] for trial in trials)
    assert (a["global_step"], a["preemption_count"], b["preemption_count"]) == (STEPS, 0, 3)
    for name in ("model_params", "optimizer_state", "model_state", "random_state", "batches_drawn"):
        left, right = leaves(a[name]), leaves(b[name])
        assert left.keys() == right.keys()
        for key, value in left.items():
            np.testing.assert_array_equal(value, right[key], err_msg=f"{name}{key}")
    raw = [value for key, value in leaves(a["optimizer_state"]).items() if ".raw" in key]
    trained = list(leaves(a["model_params"]).values())
    assert any(
        not np.array_equal(x, y) for x, y in zip(raw, trained)
    )  # the average was saved, and the weights beside it
    tables = [pd.read_csv(trial / "eval_measurements.csv", dtype=str) for trial in trials]
    one, other = (table[[c for c in table if "/" in c or c == "global_step"]] for table in tables)
    pd.testing.assert_frame_equal(one, other, check_exact=True)
