"""The runner on several ranks of a CPU machine, through torchrun and gloo."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from miniperf import checkpoints, frameworks
from miniperf.workloads.finewebedu_lm.model import Decoder
from miniperf.workloads.finewebedu_lm.sizes import Sizes
from miniperf.workloads.finewebedu_lm_124m.pytorch import FinewebeduLm124mWorkload
from scripts import average_checkpoints
from tests.miniperf.test_runner import assert_same_end, leaves
from tests.miniperf.workloads.test_token_batches import write
from tests.support.warm_python import python

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")

POINT = {
    "learning_rate": 0.01, "one_minus_beta1": 0.1, "beta2": 0.95, "epsilon": 1e-8, "warmup_factor": 0.1,
    "grad_clip": 0.1, "weight_decay": 0.1, "averaging_interval": 2, "averaging_window": 3,
}  # fmt: skip
LM = [
    "tests/support/small_lm.py",
    "--workload=finewebedu_lm_124m",
    "--submission=adamw_lawa",
    "--save_snapshots_every_n_steps=4",
]
FLIGHTS = ["-m", "scripts.run", "--workload=mini_criteo1tb", "--submission=adamw_lawa", "--eval_every_n_steps=3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With data, a search space and runs of 12 updates on 1, 2 and 4 ranks."""
    path = tmp_path_factory.mktemp("ranks")
    ids = np.random.default_rng(0).integers(0, 50, 3000).tolist()
    write(path / "tokens", [ids[:1700], ids[1700:]])
    (path / "space.json").write_text(json.dumps([POINT]))
    for ranks in (1, 2, 4):
        result = train(ranks, path, f"{ranks}", LM, "--save_snapshots_every_n_steps=4")
        assert result.returncode == 0, result.stderr[-3000:]
        assert result.stdout.count("step     12") == 1  # rank 0 alone says what it does
        assert result.stdout.count("trial_1: submissions/") == 1
    return path


def train(
    ranks: int, folder: Path, name: str, what: list[str], *flags: str, die: str = ""
) -> subprocess.CompletedProcess:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command = [
        python(), *(torchrun if ranks > 1 else []), *what, f"--data_dir={folder / 'tokens'}",
        f"--tuning_search_space={folder / 'space.json'}", f"--experiment_dir={folder}", f"--experiment_name={name}",
        *flags,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"DIE": die} if die else {}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)


def trial(folder: Path, name: str, workload: str = "finewebedu_lm_124m") -> Path:
    return folder / name / f"{workload}_pytorch" / "trial_1"


def end(path: Path) -> dict:
    return checkpoints.load_latest(frameworks.load("pytorch"), path, {})[1]


def assert_close_end(one: Path, other: Path) -> None:
    """Weights, the window of averages and evaluations, up to the order in which gradients and losses are summed."""
    a, b = end(one), end(other)
    assert a["global_step"] == b["global_step"]
    windows = [leaves(state["optimizer_state"]["averager"]["tracks"]) for state in (a, b)]
    assert len([value for value in windows[0].values() if isinstance(value, torch.Tensor)]) >= POINT["averaging_window"]
    for left, right in ((a["model_params"], b["model_params"]), windows):
        assert left.keys() == right.keys()  # no `module.`
        for name, value in left.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(right[name], value, rtol=1e-3, atol=1e-5, msg=name)
            else:
                assert right[name] == value, name
    tables = [pd.read_csv(path / "eval_measurements.csv") for path in (one, other)]
    names = ["global_step", *(name for name in tables[0] if "/" in name)]
    pd.testing.assert_frame_equal(tables[0][names], tables[1][names], rtol=1e-4)


def test_one_two_and_four_ranks_train_the_same_and_rank_0_writes(folder):
    for ranks in (1, 2, 4):
        path = trial(folder, f"{ranks}")
        assert {p.name for p in path.glob("checkpoint_*")} == {"checkpoint_8", "checkpoint_12"}
        assert len(list(path.glob("events.*"))) == 1
        assert len(list((path / "snapshots").glob("step_*"))) == 3
        assert_close_end(trial(folder, "1"), path)


def test_two_ranks_of_which_either_is_killed_end_bit_for_bit_like_unbroken_ones(folder):
    for die, reached in (("1:7", 4), ("0:10", 8), ("", 12)):
        result = train(2, folder, "killed", LM, "--resume_last_run", die=die)
        assert (result.returncode == 0) == (die == ""), result.stderr[-3000:]
        assert max(int(path.name.split("_")[1]) for path in trial(folder, "killed").glob("checkpoint_*")) == reached
    assert_same_end(trial(folder, "2"), trial(folder, "killed"))


def test_another_number_of_ranks_goes_on_too(folder):
    shutil.copytree(folder / "2", folder / "fewer")
    (trial(folder, "fewer") / "checkpoint_12").unlink()
    result = train(1, folder, "fewer", LM, "--resume_last_run")
    assert result.returncode == 0, result.stderr[-3000:]
    assert_close_end(trial(folder, "1"), trial(folder, "fewer"))


def test_snapshots_are_averaged_afterwards_on_the_data_of_the_run(folder, monkeypatch):
    sizes = Sizes(vocabulary=50, context=16, width=16, layers=2, heads=2, hidden=32)  # of small_lm.py
    monkeypatch.setattr(FinewebeduLm124mWorkload, "sizes", sizes)
    snapshots = trial(folder, "2") / "snapshots"
    flags = ["--workload=finewebedu_lm_124m", "--lawa=window=2,interval=4", f"--experiment_dir={folder / 'offline'}"]
    average_checkpoints.run(average_checkpoints.parser().parse_args([str(snapshots), *flags, "--validation_only"]))
    table = pd.read_csv(next((folder / "offline").rglob("eval_measurements.csv")))
    assert list(table["global_step"]) == [8, 10, 12]
    states = [load_file(snapshots / f"step_{step:08d}.safetensors") for step in (8, 12)]
    model = Decoder(sizes)
    model.load_state_dict({name: (states[0][name] + states[1][name]) / 2 for name in states[0]})
    workload = FinewebeduLm124mWorkload()
    workload.open(str(folder / "tokens"))
    result = workload.eval_model(8, model, None, None, "", None, 12)
    assert table["validation/loss"].iloc[-1] == pytest.approx(result["validation/loss"], rel=1e-6)


def test_a_miniature_trains_on_two_ranks_as_on_one(folder):
    for ranks in (1, 2):
        result = train(ranks, folder, f"flights {ranks}", FLIGHTS, "--max_global_steps=9")
        assert result.returncode == 0, result.stderr[-3000:]
    assert_close_end(*(trial(folder, f"flights {ranks}", "mini_criteo1tb") for ranks in (1, 2)))


def test_a_miniature_takes_its_batches_whole(folder):
    result = train(1, folder, "x", FLIGHTS, "--micro_batch_size=3")
    line = "error: --micro_batch_size=3: mini_criteo1tb takes its batches whole"
    assert (result.returncode, result.stderr.splitlines()[-1]) == (2, line)
