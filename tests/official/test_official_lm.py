"""The submissions on AlgoPerf's own language model; needs a harness of 2026, which has it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


def in_harness() -> bool:
    package = importlib.util.find_spec("algoperf")
    return (
        package is not None and Path(package.origin or "", "../workloads/finewebedu_lm/workload.py").resolve().exists()
    )


pytestmark = pytest.mark.skipif(not in_harness(), reason="no algoperf with finewebedu_lm is installed")


def run(*arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{os.getcwd()}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    result = subprocess.run(
        [sys.executable, "tests/processes/official_lm.py", *arguments],
        capture_output=True,
        text=True,
        env={**environment, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    return result.stdout


@pytest.mark.parametrize("submission", ["nadamw", "lawa", "ema", "adamw"])
def test_a_submission_keeps_the_contract_on_a_small_finewebedu_lm(submission):
    assert f"finewebedu_lm {submission}: " in run(submission)


@pytest.mark.heavy
@pytest.mark.parametrize("submission", ["lawa", "ema"])
def test_a_submission_keeps_the_contract_on_finewebedu_lm(submission):
    print(run(submission, "--full").splitlines()[-1])  # seconds and memory
