"""Whole modules in pickles: read without their classes, and written back into the latest file."""

import os
import pickle
import sys
import types
import zipfile

import pytest
import torch
from torch import nn

from tests.support.forms import command, is_mean, state_of
from tests.support.small_models import model_of, randomise
from weight_averaging.averages import SnapshotError
from weight_averaging.offline import Snapshots
from weight_averaging.offline.forms.inert import InertFile, state_of_module


@pytest.fixture
def elsewhere(monkeypatch):
    """A module class that is there while files are written, and gone when they are read."""
    there = types.ModuleType("library_elsewhere")
    exec("from torch import nn\nclass Net(nn.Sequential):\n    names = ['a']\n    def __setstate__(self, state):"
         "\n        assert False, 'code of the file'", there.__dict__)  # fmt: skip
    monkeypatch.setitem(sys.modules, "library_elsewhere", there)
    yield there.Net
    sys.modules.pop("library_elsewhere", None)


def save(path, module, seed, **rest):
    randomise(module, seed)
    torch.save({"epoch": seed - 1, "model": None, "ema": module.half(), "note": {"a", 2}, **rest}, path)
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_an_average_is_the_latest_file_with_other_weights(tmp_path, capsys, elsewhere):
    states = []
    for seed in (1, 2, 3):
        module = elsewhere(*model_of().children(), nn.BatchNorm1d(2))
        module.register_buffer("passing", torch.ones(2), persistent=False)
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        states.append(save(tmp_path / f"epoch{seed - 1}.pt", module, seed, optimizer=optimizer.state_dict()))
    sys.modules.pop("library_elsewhere")
    out = tmp_path / "out" / "average.pt"
    said = command(capsys, "average", tmp_path, "--lawa=window=2", f"--out={out}")
    assert "made of 2 snapshots, epochs 2, 3" in said
    assert "averaged are the weights of the whole module at ema; an average is the latest file with these in it" in said
    file = InertFile(out)
    is_mean(state_of_module(file.contents["ema"]), states[1:])
    assert file.contents["note"] == {"a", 2}
    assert file.contents["ema"].kind == "library_elsewhere.Net"
    with pytest.raises(SnapshotError, match="holds no snapshot but what is left out"):  # which it says itself
        Snapshots(out.parent)
    said = command(capsys, "average", tmp_path, "--lawa=window=2", f"--out={tmp_path / 'x.pt'}", "--float32")
    assert "cannot take" in said
    assert said.count("\n") == 1
    command(capsys, "average", tmp_path, "--lawa=window=3", f"--out={tmp_path / 'plain.safetensors'}", "--float32")


def test_what_torch_itself_saves_loads_again(tmp_path, capsys):
    states = []
    for seed in (1, 2):
        module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        module.append(module[0])  # twice there
        module[0].weight.note = "an attribute"
        randomise(module, seed)
        torch.save(module, tmp_path / f"step_{seed}.pt")
        states.append({name: value.clone() for name, value in module.state_dict().items()})
    out = tmp_path / "out.pt"
    said = command(capsys, "average", tmp_path, "--lawa=window=2", f"--out={out}")
    assert f'load: torch.load("{out}", weights_only=False)' in said
    loaded = torch.load(out, weights_only=False)
    is_mean(loaded.state_dict(), states)
    assert loaded[0].weight is loaded[2].weight
    mapped = torch.load(out, weights_only=False, mmap=True)
    torch.testing.assert_close(mapped.state_dict(), loaded.state_dict())


class Bomb:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def test_nothing_in_it_runs(tmp_path, capsys):
    marker = tmp_path / "marker"
    bombs = [Bomb(os.system, (f"touch {marker}",)), Bomb(eval, (f"open({str(marker)!r}, 'w')",))]
    for number, bomb in enumerate(bombs):
        path = tmp_path / f"step_{number}.pt"
        torch.save({"model": nn.Linear(2, 2), "bomb": bomb, "step": number + 1}, path)
        assert state_of_module(InertFile(path).contents["model"]).keys() == {"weight", "bias"}
    assert "checkpoints: 2, steps 1, 2" in command(capsys, "inspect", tmp_path)
    assert not marker.exists()
    # A function that the file names gets a state: it is none of torch's own.
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as file:
        file.writestr(
            "a/data.pkl", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00kX\x01\x00\x00\x00vsb."
        )
    InertFile(tmp_path / "a.pt")
    assert not hasattr(torch._utils._rebuild_tensor_v2, "k")


def test_modules_in_modules_without_end(tmp_path, capsys):
    """A small file whose modules would have 2^40 names, and one that holds itself."""
    inner = nn.Linear(1, 1)
    for _ in range(40):
        outer = nn.Module()
        outer.a = outer.b = inner
        inner = outer
    torch.save({"model": inner}, tmp_path / "step_1.pt")
    said = command(capsys, "inspect", tmp_path)
    assert said.startswith(f"error: {tmp_path / 'step_1.pt'}")
    assert said.count("\n") == 1
    circle = nn.Linear(2, 2)
    circle._modules["self"] = circle
    torch.save({"model": circle}, tmp_path / "step_1.pt")
    assert state_of_module(InertFile(tmp_path / "step_1.pt").contents["model"]).keys() == {"weight", "bias"}


def test_pickles_of_other_kinds_stay_refused(tmp_path, capsys):
    torch.save({"model": state_of(1), "args": types.SimpleNamespace(a=1)}, tmp_path / "step_1.pt")
    assert "is refused: unpickling it would call types.SimpleNamespace" in command(capsys, "inspect", tmp_path)
    (tmp_path / "step_1.pt").write_bytes(pickle.dumps(nn.Linear(2, 2)))
    assert command(capsys, "inspect", tmp_path).startswith("error: ")
