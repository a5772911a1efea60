"""The submissions under the official harness's own API; needs `algoperf`, see the extra `official`."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

needs_algoperf = pytest.mark.skipif(importlib.util.find_spec("algoperf") is None, reason="algoperf is not installed")


@needs_algoperf
@pytest.mark.parametrize("name", ["nadamw", "nadamw_no_decay", "lawa", "lawa_no_decay", "ema", "ema_no_decay"])
def test_a_submission_keeps_the_contract_on_mnist(name):
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "tests/official_driver.py", name]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip().endswith("ok")


@needs_algoperf
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
