"""The harness's own tests/reference_algorithm_tests.py, unmodified, on every submission; needs `algoperf`.

One update and two evaluations on made-up batches, as MLCommons tries its reference algorithms.
"""

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launching import own_submissions
from miniperf import frameworks
from tests.support.warm_python import python

pytestmark = pytest.mark.skipif(importlib.util.find_spec("algoperf") is None, reason="algoperf is not installed")

SUBMISSIONS = ["nadamw", "nadamw_no_decay", "lawa", "lawa_no_decay", "ema", "ema_no_decay"]
CHEAP = ["ogbg", "criteo1tb_test"]
HEAVY = [
    "criteo1tb", "fastmri", "imagenet_resnet", "imagenet_vit", "librispeech_conformer", "librispeech_deepspeech", "wmt",
]  # fmt: skip
NEED_TORCHVISION = ("fastmri", "imagenet")
LIGHT = {"pytorch": SUBMISSIONS, "jax": ["lawa"]}
ON_MNIST = [
    pytest.param(framework, name, marks=[] if name in LIGHT[framework] else pytest.mark.heavy)
    for framework in frameworks.NAMES
    for name in own_submissions.names(framework)
]


def run_reference_test(workload: str, submission: str, folder: Path, framework: str = "pytorch") -> None:
    spec = importlib.util.find_spec("algoperf")
    assert spec is not None
    assert spec.origin is not None
    harness = Path(spec.origin).parents[1]  # its tests are installed beside the package
    space = Path("tuning_search_spaces", f"{submission}.json").absolute()
    command = [
        python(), str(harness / "tests" / "reference_algorithm_tests.py"), f"--framework={framework}",
        f"--workload={workload}", "--global_batch_size=2", f"--log_file={folder / 'log.pkl'}",
        f"--submission_path=submissions/{framework}/{submission}/submission.py",
        f"--tuning_search_space={space if space.exists() else None}",  # "None": one that tunes itself
    ]  # fmt: skip
    # The harness first: `tests` must be its own.
    sources = os.pathsep.join([str(harness), os.getcwd(), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": sources, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    assert "Ran 1 test" in result.stderr, result.stderr[-3000:]


@pytest.mark.parametrize(("framework", "submission"), ON_MNIST)
def test_the_reference_test_passes_with_every_submission(framework, submission, tmp_path):
    optimizer = importlib.import_module(f"submissions.{framework}.{submission}.submission").recipe.optimizer
    if missing := optimizer.missing():
        pytest.skip(missing)
    run_reference_test("mnist", submission, tmp_path, framework)


@pytest.mark.parametrize("submission", SUBMISSIONS)
@pytest.mark.parametrize("workload", CHEAP)
def test_the_reference_test_passes_on_a_small_workload(workload, submission, tmp_path):
    run_reference_test(workload, submission, tmp_path)


@pytest.mark.heavy
@pytest.mark.parametrize("submission", SUBMISSIONS)
@pytest.mark.parametrize("workload", CHEAP)
def test_the_reference_test_passes_in_jax_on_a_small_workload(workload, submission, tmp_path):
    run_reference_test(workload, submission, tmp_path, "jax")


@pytest.mark.heavy
@pytest.mark.parametrize("submission", SUBMISSIONS)
@pytest.mark.parametrize("workload", HEAVY)
def test_the_reference_test_passes_on_every_workload(workload, submission, tmp_path):
    if workload.startswith(NEED_TORCHVISION):
        trial = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, check=False)
        if trial.returncode:
            pytest.skip("torchvision does not fit this build of torch")
    run_reference_test(workload, submission, tmp_path)
