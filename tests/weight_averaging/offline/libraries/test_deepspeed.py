"""Checkpoints that DeepSpeed's ZeRO saves, averaged in float32; DeepSpeed itself says what their weights are."""

import importlib.util
import subprocess
import sys

import pytest
import torch

from tests.support.forms import command, state_of
from tests.weight_averaging.offline.test_zero_folders import write
from weight_averaging.offline.forms.deepspeed import ZeroFolder
from weight_averaging.offline.reading import Snapshots

pytestmark = [
    pytest.mark.trainers,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="could not import 'deepspeed'"),
]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero(tmp_path, capsys, stage):
    """Of one rank; the first run builds an operator of DeepSpeed, which takes a minute."""
    folder = tmp_path / "run"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.processes.zero_training", str(stage), str(folder)],
        capture_output=True, text=True, timeout=300,  # a build that was killed leaves a lock, for which all others wait
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    out = tmp_path / "average.pt"
    said = command(capsys, "average", folder, "--lawa=window=2", f"--out={out}", "--exclude=1.scale")
    assert "made of 2 snapshots, steps 2, 3" in said
    assert Snapshots(folder).learning_rates == dict.fromkeys((1, 2, 3), 0.01)
    masters = [torch.load(tmp_path / f"weights_{number}.pt") for number in (2, 3)]
    found = torch.load(out)
    assert found.pop("1.scale").tolist() == [2.0, 3.0]
    assert found.keys() == masters[0].keys()
    for name, value in found.items():
        mean = torch.stack([one[name].double() for one in masters]).mean(0)
        torch.testing.assert_close(value.double(), mean, rtol=2**-23, atol=2**-30)
    copies = [torch.load(path, weights_only=False)["module"] for path in sorted(folder.glob("*/*model_states.pt"))[1:]]
    if stage < 3:
        name = "0.weight"
        coarse = torch.stack([one[name].double() for one in copies]).mean(0)
        assert (found[name] - coarse).abs().max() > 1e-5


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("ranks", [1, 3])
def test_deepspeeds_own_tool_puts_the_same_together(tmp_path, stage, ranks):
    """Of folders as several ranks write them, which are cut here."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    state = state_of(1) | {"a.mean": torch.randn(3), "last": state_of(1)["0.weight"], "fixed": torch.randn(3, 3)}
    folder = tmp_path / "global_step1"
    write(folder, state, ranks, stage, 2, ("a.mean",), ("fixed",), {"last": "0.weight"}, padding=1)
    source = ZeroFolder(folder)
    found = source.read(list(source.layout))
    expected = get_fp32_state_dict_from_zero_checkpoint(str(tmp_path), tag="global_step1")
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name].float(), rtol=0, atol=0)
