"""What a command that fails leaves behind: nothing, not even the folders that it made."""

import errno

import pytest
import torch

from tests.support.forms import command
from weight_averaging.torch import EMA


@pytest.fixture
def checkpoint(tmp_path):
    model = torch.nn.Linear(2, 2)
    averager = EMA(model, decay=0.5, interval=1)
    averager.update(1)
    torch.save({"model": model.state_dict(), "averager": averager.state_dict()}, tmp_path / "step_1.pt")
    return tmp_path / "step_1.pt"


@pytest.mark.parametrize(
    "arguments",
    [("average", "--lawa=window=1"), ("average", "--lawa=window=1", "--ema=decay=.5"), ("extract",)],
    ids=["one", "several", "extract"],
)
@pytest.mark.parametrize("there", [False, True])
def test_folders_that_were_made_go_with_an_error(checkpoint, capsys, monkeypatch, arguments, there):
    top = checkpoint.parent / "top"
    if there:
        top.mkdir()

    def full(*args, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    name = "two/averages" if len(arguments) > 2 else "two/average.pt"
    arguments = (arguments[0], checkpoint, *arguments[1:], f"--out={top / name}")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        patch.setattr("weight_averaging.offline.safetensors_files.SafetensorsWriter.write_part", full)
        said = command(capsys, *arguments)
    assert said.startswith("error: [Errno 28] No space left on device")
    assert said.count("\n") == 1
    assert sorted(checkpoint.parent.rglob("*")) == sorted([checkpoint, *([top] if there else [])])
    command(capsys, *arguments)
    assert (top / name).exists()
