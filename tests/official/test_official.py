"""The submissions under the official harness's own API; needs `algoperf`, see the extra `official`."""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests.support.commands import ended

pytestmark = pytest.mark.skipif(importlib.util.find_spec("algoperf") is None, reason="algoperf is not installed")

SUBMISSIONS = [
    "nadamw", "nadamw_no_decay", "lawa", "lawa_no_decay", "ema", "ema_no_decay", "nadamw_self", "lawa_self",
    "lawa_wsd",
]  # fmt: skip
FROM_PACKAGES = {  # where their base optimizer is from
    "ademamix": "pytorch_optimizer", "ademamix_lawa": "pytorch_optimizer", "soap_ema": "pytorch_optimizer",
    "schedule_free_adamw": "schedulefree", "shampoo_lawa": "distributed_shampoo",
}  # fmt: skip
HEAVY = [
    "criteo1tb", "fastmri", "imagenet_resnet", "imagenet_vit", "librispeech_conformer", "librispeech_deepspeech", "wmt",
]  # fmt: skip


# What JAX has compiled for a workload and a submission, so that the second run of a process need not.
COMPILED = {
    "JAX_COMPILATION_CACHE_DIR": str(Path(tempfile.gettempdir()) / "weight_averaging_compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1",
}


def run(*arguments: str, devices: int = 1, seconds: float = 7200) -> str:
    """Standard output and error of a process of its own: absl's flags are global.

    Args:
        devices: that JAX takes the CPU for.
        seconds: that it is given.
    """
    split = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    environment = {**os.environ, **COMPILED, **split, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([sys.executable, *arguments], stdout=output, stderr=output, env=environment)
        status = ended(process, seconds)
        output.seek(0)
        said = output.read()
    assert status == 0, f"{said[-3000:]}\nstatus {status}"
    return said


@pytest.mark.parametrize("submission", SUBMISSIONS)
def test_a_submission_keeps_the_contract_on_mnist(submission):
    assert f"mnist {submission}: " in run("tests/processes/official_driver.py", submission, "mnist")


@pytest.mark.parametrize("submission", FROM_PACKAGES)
def test_a_submission_over_another_optimizer_keeps_the_contract_on_mnist(submission):
    pytest.importorskip(FROM_PACKAGES[submission])
    assert f"mnist {submission}: " in run("tests/processes/official_driver.py", submission, "mnist")


@pytest.mark.parametrize("workload", ["ogbg", "criteo1tb_test"])
def test_lawa_keeps_the_contract_on_a_small_workload(workload):
    assert f"{workload} lawa: " in run("tests/processes/official_driver.py", "lawa", workload)


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("submission", ["nadamw", "lawa", "adamw_ema"])
def test_a_submission_in_jax_keeps_the_contract_on_mnist(submission, devices):
    output = run("tests/processes/official_driver.py", submission, "mnist", "--framework=jax", devices=devices)
    assert f"mnist {submission}: " in output
    assert "the restored state has 1 leading axes too many" in output


@pytest.mark.heavy
@pytest.mark.parametrize(("submission", "devices"), [("lawa", 1), ("lawa", 4), ("ema", 1), ("ema", 4)])
@pytest.mark.parametrize("workload", ["ogbg", "criteo1tb_test", *HEAVY])
def test_a_submission_in_jax_keeps_the_contract_on_every_workload(workload, submission, devices):
    lines = run(
        "tests/processes/official_driver.py", submission, workload, "--framework=jax", devices=devices
    ).splitlines()
    print(devices, next(line for line in lines if line.startswith(f"{workload} {submission}: ")))


@pytest.mark.heavy
@pytest.mark.parametrize("submission", ["lawa", "ema"])
@pytest.mark.parametrize("workload", HEAVY)
def test_a_submission_keeps_the_contract_on_every_workload(workload, submission):
    lines = run("tests/processes/official_driver.py", submission, workload).splitlines()
    print(next(line for line in lines if line.startswith(f"{workload} {submission}: ")))  # seconds and memory


def test_step_hints_and_budgets_are_those_of_the_harness():
    code = """
from tests.processes.official_driver import Run
from launching.official_workloads import WORKLOADS
for name, needs in WORKLOADS.items():
    workload = Run.make_workload(name)
    found, known = (workload.step_hint, workload.max_allowed_runtime_sec), (needs.step_hint, needs.a100_seconds)
    assert found == known, f"{name}: {found}, not {known}"
print("all equal")
"""
    assert "all equal" in run("-c", code)


def test_ranks_stay_equal_through_a_resume_that_loses_ddp():
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    output = run(*torchrun, "tests/processes/official_ranks.py", seconds=1200)  # those of official_ranks.py, and more
    assert "ranks agree" in output
    assert "without DistributedDataParallel, as after a resume" in output


@pytest.mark.parametrize("framework", ["pytorch", "jax"])
def test_upstream_says_nothing_of_a_submission_in_the_other_framework_so_it_does_itself(framework):
    other = {"pytorch": "jax", "jax": "pytorch"}[framework]
    with pytest.raises(AssertionError, match=f"run it with --framework={other}"):
        run(
            "tests/processes/official_driver.py",
            f"submissions.{other}.lawa.submission",
            "mnist",
            f"--framework={framework}",
        )


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
