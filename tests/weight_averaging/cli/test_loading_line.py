"""The last line of a command: it loads what was written, as it is printed."""

import argparse

import pytest
import torch
from torch import nn

from tests.support.forms import command


class Sized(nn.Linear):
    """A layer with extra state, which safetensors cannot hold."""

    def get_extra_state(self):
        return {"size": 3}

    def set_extra_state(self, state):
        assert state == {"size": 3}


def filled(model, value):
    for tensor in model.state_dict().values():
        if isinstance(tensor, torch.Tensor):
            tensor.fill_(value)
    return model


def loaded(said, model):
    """The model, or what else the printed line gives, after that line was run."""
    line = said.splitlines()[-1]
    assert line.startswith("load: ")
    import safetensors.torch

    given = eval(line.removeprefix("load: "), {"model": model, "torch": torch, "safetensors": safetensors})
    return model if isinstance(given, tuple) else given


FORMS = {
    "state dict": lambda model: model.state_dict(),
    "under a key": lambda model: {"model": model.state_dict(), "global_step": 1},
    "deep": lambda model: {"state": {"model": model.state_dict()}, "global_step": 1},
    "of DDP": lambda model: {"model": {f"module.{n}": t for n, t in model.state_dict().items()}},
    "with a class": lambda model: {"state_dict": model.state_dict(), "args": argparse.Namespace(lr=1.0)},
}


@pytest.mark.parametrize("out", ["average.pt", "average.pth", "average.safetensors", 'a "b" \\ c.pt'])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [nn.Linear, Sized])
def test_of_files(tmp_path, capsys, form, out, kind):
    model = kind(2, 3)
    (tmp_path / "run").mkdir()
    for step in (1, 2):
        torch.save(FORMS[form](filled(model, float(step))), tmp_path / "run" / f"step_{step}.pt")
    said = command(
        capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={tmp_path / out}", "--plain-names",
        "--allow-class=argparse.Namespace",
    )  # fmt: skip
    filled(model, 0.0)
    assert torch.equal(loaded(said, model).weight, torch.full((3, 2), 1.5))


def test_of_a_whole_module(tmp_path, capsys):
    for step in (1, 2):
        torch.save(filled(nn.Linear(2, 3), float(step)), tmp_path / f"step_{step}.pt")
    for out in ("average.pt", "average.safetensors"):
        said = command(capsys, "average", tmp_path / "step_1.pt", tmp_path / "step_2.pt", "--lawa=window=2",
                       f"--out={tmp_path / out}")  # fmt: skip
        assert torch.equal(loaded(said, nn.Linear(2, 3)).weight, torch.full((3, 2), 1.5))


@pytest.mark.parametrize("out", ["average.pt", "average.safetensors"])
def test_of_what_is_extracted(tmp_path, capsys, out):
    from weight_averaging import LAWA

    model = filled(nn.Linear(2, 3), 1.0)
    lawa = LAWA(model, interval=1, window=2)
    lawa.update(1)
    filled(model, 2.0)
    lawa.update(2)
    torch.save({"lawa": lawa.state_dict(), "model": model.state_dict()}, tmp_path / "c.pt")
    said = command(capsys, "extract", tmp_path / "c.pt", f"--out={tmp_path / out}")
    assert torch.equal(loaded(said, model).weight, torch.full((3, 2), 1.5))
