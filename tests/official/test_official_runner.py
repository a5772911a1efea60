"""End to end through the official `submission_runner`, this repository as the working directory; needs `algoperf`."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from launching import official
from tests.support.commands import ended

pytestmark = pytest.mark.skipif(importlib.util.find_spec("algoperf") is None, reason="algoperf is not installed")

POINT = {
    "learning_rate": 1e-3, "one_minus_beta1": 0.1, "beta2": 0.99, "weight_decay": 0.1, "warmup_factor": 0.01,
    "averaging_interval": 1, "averaging_window": 3,
}  # fmt: skip


def start(*arguments: str, log: Path) -> subprocess.Popen:
    environment = {
        **os.environ,
        "PYTHONPATH": os.getcwd(),
        "OMP_NUM_THREADS": "1",
        **official.environment("jax", 0, None),
    }
    with open(log, "a") as output:
        return subprocess.Popen([sys.executable, *arguments], stdout=output, stderr=output, env=environment)


def run(*arguments: str, log: Path) -> None:
    assert ended(start(*arguments, log=log), 7200) == 0, log.read_text()[-3000:]


def flags(folder: Path, workload: str, points: list[dict], framework: str = "pytorch") -> list[str]:
    space = folder / "space.json"
    space.write_text(json.dumps(points))
    return [
        f"--framework={framework}", f"--workload={workload}",
        f"--submission_path=submissions/{framework}/lawa/submission.py",
        f"--tuning_search_space={space}", f"--num_tuning_trials={len(points)}", "--rng_seed=5",
    ]  # fmt: skip


def evaluations(folder: Path, workload: str, trial: int = 1, framework: str = "pytorch") -> pd.DataFrame:
    return pd.read_csv(folder / f"lawa/{workload}_{framework}/trial_{trial}/eval_measurements.csv", dtype=str)


def test_a_miniature_workload_gives_the_same_rows_under_both_runners(tmp_path):
    common = [*flags(tmp_path, "mini_imagenet_vit", [POINT]), "--max_global_steps=6", "--experiment_name=lawa"]
    official, ours = tmp_path / "official", tmp_path / "miniperf"
    log = tmp_path / "log"
    run("tests/processes/official_mini.py", *common, "--torch_compile=false", f"--experiment_dir={official}", log=log)
    run(
        "-m", "miniperf.submission_runner", *common, "--eval_every_n_steps=1", f"--experiment_dir={ours}", log=log
    )  # fmt: skip
    tables = [evaluations(folder, "mini_imagenet_vit") for folder in (official, ours)]
    assert list(tables[0]) == list(tables[1])
    clock = ["score", "total_duration", *[c for c in tables[0] if c.startswith("accumulated_")]]
    pd.testing.assert_frame_equal(tables[0].drop(columns=clock), tables[1].drop(columns=clock))
    assert len(tables[0]) == 6
    assert tables[0]["validation/loss"].nunique() == 6, "the weights do not move"


@pytest.fixture(scope="module")
def mnist(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    run("tests/processes/official_mnist.py", str(folder), log=folder / "log")
    return folder


@pytest.mark.heavy
@pytest.mark.parametrize("framework", ["pytorch", "jax"])
def test_trials_on_mnist_are_resumed_after_a_kill(framework, mnist, tmp_path):
    arguments = [
        "-m", "submission_runner", *flags(tmp_path, "mnist", [POINT, {**POINT, "learning_rate": 2e-3}], framework),
        f"--data_dir={mnist}", f"--experiment_dir={tmp_path}", "--experiment_name=lawa", "--torch_compile=false",
        "--max_global_steps=2500", "--save_intermediate_checkpoints=false",
    ]  # fmt: skip
    trials = [tmp_path / f"lawa/mnist_{framework}/trial_{number}" for number in (1, 2)]
    process = start(*arguments, log=tmp_path / "log")
    while process.poll() is None and not (trials[0] / "checkpoint_1").exists():
        time.sleep(0.1)
    time.sleep(1)  # the checkpoint, written in place, is whole and training goes on
    process.kill()
    process.wait()
    assert not (trials[0] / "checkpoint_2500").exists(), "finished before the kill; raise --max_global_steps"

    run(*arguments, "--resume_last_run", log=tmp_path / "log")
    for number, trial in enumerate(trials, start=1):
        table = evaluations(tmp_path, "mnist", number, framework)
        assert table["global_step"].iloc[0] == "1"
        assert table["global_step"].iloc[-1] == "2500"
        assert table["preemption_count"].iloc[-1] == ("1" if number == 1 else "0")
        assert float(table["validation/accuracy"].iloc[-1]) > float(table["validation/accuracy"].iloc[0])
        assert (trial / "checkpoint_2500").is_file()
        assert (trial / "measurements.csv").is_file()
        assert list(trial.glob("events.out.tfevents.*"))
        learning_rate = json.loads((trial / "hparams.json").read_text())["learning_rate"]
        assert learning_rate == (1e-3 if number == 1 else 2e-3)


@pytest.mark.heavy
def test_two_ranks_train_on_mnist_through_the_official_runner(mnist, tmp_path):
    run(
        "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "tests/processes/official_ranks.py",
        "submission_runner", *flags(tmp_path, "mnist", [POINT]), f"--data_dir={mnist}",
        f"--experiment_dir={tmp_path}", "--experiment_name=lawa", "--torch_compile=false", "--max_global_steps=20",
        log=tmp_path / "log",
    )  # fmt: skip
    table = evaluations(tmp_path, "mnist")
    assert list(table["global_step"]) == ["1", "20"]
