"""Whole rehearsals through the official harness; need `algoperf`. The others: tests/launching/rehearsal/."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launching.official_workloads import WORKLOADS
from launching.rehearsal import data
from launching.rehearsal.data import language

pytestmark = pytest.mark.skipif(importlib.util.find_spec("algoperf") is None, reason="algoperf is not installed")

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


def rehearse(root: Path, out: Path, *flags: str) -> dict:
    command = [sys.executable, "-m", "scripts.rehearse", "--gpus=0", f"--data_dir={root}", f"--out={out}", *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    (path,) = out.glob("*/result.json")
    return json.loads(path.read_text())


def test_a_run_on_mnist_is_rehearsed(root, tmp_path):
    result = rehearse(root, tmp_path, "--workload=mnist", "--submission=lawa")
    assert {check["name"]: check["passed"] for check in result["checks"]} == dict.fromkeys(
        ("data read", "updates", "evaluations", "average", "raw weights back", "checkpoint", "end", "logs"), True
    )
    assert not list(tmp_path.glob("*/runs")), "checkpoints are left"


def test_a_submission_without_an_average_and_one_that_tunes_itself(root, tmp_path):
    rehearse(root, tmp_path / "raw", "--workload=mnist", "--submission=nadamw")
    result = rehearse(root, tmp_path / "self", "--workload=mnist", "--submission=ema_self")
    assert result["cell"]["search_space"] is None


@pytest.mark.heavy
@pytest.mark.parametrize("submission", ["lawa", "ema"])
@pytest.mark.parametrize("framework", ["pytorch", "jax"])
@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_run_is_rehearsed(workload, framework, submission, root, tmp_path):
    rehearse(root, tmp_path, f"--workload={workload}", f"--framework={framework}", f"--submission={submission}")


@pytest.mark.heavy
@pytest.mark.parametrize("workload", ["mnist", "ogbg"])
def test_a_run_on_two_ranks_is_rehearsed(workload, root, tmp_path):
    rehearse(root, tmp_path, f"--workload={workload}", "--submission=lawa", "--ranks=2")


def test_translations_are_described_and_have_all_the_models_pieces(root):
    """wmt's pipeline reads the supervised keys, and its evaluation ends where a predicted token has no piece."""
    data.prepare(root, "wmt", sys.executable, ENVIRONMENT)
    described = list((root / "wmt").glob("wmt*/de-en/1.0.0/dataset_info.json"))
    assert len(described) == 2
    assert all(json.loads(path.read_text())["supervisedKeys"] for path in described)
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=str(root / "wmt" / "wmt_sentencepiece_model"))
    assert model.get_piece_size() == language.TRANSLATION_PIECES
    assert model.decode([language.TRANSLATION_PIECES - 1])
