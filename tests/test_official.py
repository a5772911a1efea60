"""The submissions under the official harness's own API; needs `algoperf`, see the extra `official`."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("algoperf") is None, reason="algoperf is not installed")

SUBMISSIONS = ["nadamw", "nadamw_no_decay", "lawa", "lawa_no_decay", "ema", "ema_no_decay"]
HEAVY = [
    "criteo1tb", "fastmri", "imagenet_resnet", "imagenet_vit", "librispeech_conformer", "librispeech_deepspeech", "wmt",
]  # fmt: skip


def run(*arguments: str) -> str:
    """Standard output and error of a process of its own: absl's flags are global."""
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    return result.stdout + result.stderr


@pytest.mark.parametrize("submission", SUBMISSIONS)
def test_a_submission_keeps_the_contract_on_mnist(submission):
    assert f"mnist {submission}: " in run("tests/official_driver.py", submission, "mnist")


@pytest.mark.parametrize("workload", ["ogbg", "criteo1tb_test"])
def test_lawa_keeps_the_contract_on_a_small_workload(workload):
    assert f"{workload} lawa: " in run("tests/official_driver.py", "lawa", workload)


@pytest.mark.heavy
@pytest.mark.parametrize("submission", ["lawa", "ema"])
@pytest.mark.parametrize("workload", HEAVY)
def test_a_submission_keeps_the_contract_on_every_workload(workload, submission):
    lines = run("tests/official_driver.py", submission, workload).splitlines()
    print(next(line for line in lines if line.startswith(f"{workload} {submission}: ")))  # seconds and memory


def test_step_hints_and_budgets_are_those_of_the_harness():
    code = """
from tests.official_driver import Run
from launching.workloads import WORKLOADS
for name, needs in WORKLOADS.items():
    if not needs.since:
        workload = Run.make_workload(name)
        found, known = (workload.step_hint, workload.max_allowed_runtime_sec), (needs.step_hint, needs.v100_seconds)
        assert found == known, f"{name}: {found}, not {known}"
print("all equal")
"""
    assert "all equal" in run("-c", code)


def test_ranks_stay_equal_through_a_resume_that_loses_ddp():
    output = run("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "tests/official_ranks.py")
    assert "ranks agree" in output
    assert "without DistributedDataParallel, as after a resume" in output


def test_random_keys_are_the_official_ones():
    from absl import flags

    if "framework" not in flags.FLAGS:
        flags.DEFINE_string("framework", "pytorch", "")
    flags.FLAGS(["test"])
    from algoperf import random_utils as official

    from miniperf import random_utils as ours

    np.testing.assert_array_equal(ours.key_from_seed(7), official.PRNGKey(7))
    np.testing.assert_array_equal(ours.split([3, 4], 5), official.split(np.array([3, 4]), 5))
    assert list(ours.fold_in(np.array([3, 4]), 9)) == list(official.fold_in(np.array([3, 4]), 9))
