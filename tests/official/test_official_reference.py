"""The harness's own tests/reference_algorithm_tests.py, unmodified, on every submission; needs `algoperf`.

One update and two evaluations on made-up batches, as MLCommons tries its reference algorithms.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("algoperf") is None, reason="algoperf is not installed")

SUBMISSIONS = ["nadamw", "nadamw_no_decay", "lawa", "lawa_no_decay", "ema", "ema_no_decay"]
CHEAP = ["mnist", "ogbg", "criteo1tb_test"]
HEAVY = [
    "criteo1tb", "fastmri", "imagenet_resnet", "imagenet_vit", "librispeech_conformer", "librispeech_deepspeech", "wmt",
]  # fmt: skip
NEED_TORCHVISION = ("fastmri", "imagenet")


def run_reference_test(workload: str, submission: str, folder: Path, framework: str = "pytorch") -> None:
    spec = importlib.util.find_spec("algoperf")
    assert spec is not None
    assert spec.origin is not None
    harness = Path(spec.origin).parents[1]  # its tests are installed beside the package
    command = [
        sys.executable, str(harness / "tests" / "reference_algorithm_tests.py"), f"--framework={framework}",
        f"--workload={workload}", "--global_batch_size=2", f"--log_file={folder / 'log.pkl'}",
        f"--submission_path=submissions/{framework}/{submission}/submission.py",
        f"--tuning_search_space={Path.cwd() / 'tuning_search_spaces' / f'{submission}.json'}",
    ]  # fmt: skip
    # The harness first: `tests` must be its own.
    environment = {**os.environ, "PYTHONPATH": f"{harness}{os.pathsep}{os.getcwd()}", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    assert "Ran 1 test" in result.stderr, result.stderr[-3000:]


@pytest.mark.parametrize("submission", SUBMISSIONS)
@pytest.mark.parametrize("workload", CHEAP)
def test_the_reference_test_passes_on_a_small_workload(workload, submission, tmp_path):
    run_reference_test(workload, submission, tmp_path)


def test_the_reference_test_passes_in_jax(tmp_path):
    run_reference_test("mnist", "lawa", tmp_path, "jax")


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
