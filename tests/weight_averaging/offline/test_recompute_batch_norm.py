"""`--recompute-batch-norm`: the statistics that a model in memory gets, in checkpoints' own form."""

import sys

import pytest
import torch
from torch import nn

from tests.support.forms import command
from weight_averaging.torch import LAWA, recompute_batch_norm

MODULE = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    last = (nn.Linear(64, 3), nn.BatchNorm1d(3))
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), *last)

def data():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 2, 6, 6, generator=generator) + i, torch.zeros(8)) for i in range(5)]

def model_and_batches():
    return make(), data()

def passes():
    model = make()
    return model, (lambda batch=batch: model(batch[0]) for batch in data())  # a generator, anew at each call

def compiled_names():
    return nn.Sequential(make()), [{"input": batch[0]} for batch in data()]

def no_batches():
    return make(), []

def other_model():
    return nn.Linear(2, 2), data()

def no_batch_norm():
    return nn.ReLU(), data()

def wide():
    model = make()
    model[4] = nn.Linear(64, 5)
    return model, data()

def no_pair():
    return make()

def no_model():
    return "model", data()

def broken():
    raise ValueError("mine")

def leaves():
    raise SystemExit(0)

def leaves_late():
    return make(), [lambda: leaves()]

def wrong_input():
    return make(), [torch.zeros(3)]

def infinite():
    return make(), [torch.full((8, 2, 6, 6), float("inf"))]

number = 3
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A training run in memory with a LAWA, its checkpoints, and the user's module beside."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_batches.py").write_text(MODULE)
    monkeypatch.delitem(sys.modules, "my_batches", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = __import__("my_batches")
    model = mine.make()
    averager = LAWA(model, window=3, interval=1, buffers="recompute")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    (tmp_path / "run").mkdir()
    for step in range(1, 6):
        optimizer.zero_grad()
        model(mine.data()[step - 1][0]).pow(2).mean().backward()
        optimizer.step()
        averager.update(step)
        torch.save({"model": model.state_dict(), "global_step": step}, tmp_path / "run" / f"step_{step}.pt")
    with averager.averaged(lambda: recompute_batch_norm(model, [lambda b=b: model(b[0]) for b in mine.data()])):
        expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    yield tmp_path, expected
    sys.modules.pop("my_batches", None)


@pytest.mark.parametrize("function", ["model_and_batches", "passes"])
@pytest.mark.parametrize("out", ["average.pt", "average.safetensors"])
def test_equal_to_what_a_model_in_memory_gets(run, capsys, function, out):
    folder, expected = run
    said = command(
        capsys, "average", folder / "run", "--lawa=window=3", f"--recompute-batch-norm=my_batches:{function}",
        f"--out={folder / out}",
    )  # fmt: skip
    assert "statistics of 2 batch norms recomputed from 5 batches\n" in said
    if out.endswith(".pt"):
        state = torch.load(folder / out)["model"]
    else:
        from safetensors.torch import load_file

        state = load_file(folder / out)
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor)  # convolutions add in another order on other threads
    averaged = folder / "averaged.pt"
    command(capsys, "average", folder / "run", "--lawa=window=3", f"--out={averaged}")
    plain = torch.load(averaged)["model"]
    assert not torch.allclose(plain["1.running_var"], expected["1.running_var"])
    assert torch.equal(plain["0.weight"], expected["0.weight"])


def test_several_averages_each_with_its_own(run, capsys):
    folder, expected = run
    said = command(
        capsys, "average", folder / "run", "--lawa=window=1:3", "--recompute-batch-norm=my_batches:passes",
        f"--out={folder / 'averages'}",
    )  # fmt: skip
    assert said.count("recomputed from 5 batches") == 2
    from safetensors.torch import load_file

    first, second = (load_file(folder / "averages" / f"lawa_window{n}_step_5.safetensors") for n in (1, 3))
    torch.testing.assert_close(second["5.running_mean"], expected["5.running_mean"])
    assert not torch.allclose(first["5.running_mean"], expected["5.running_mean"])


def test_names_with_what_wrappers_add_and_pieces_of_tensors(tmp_path, capsys, monkeypatch):
    """A tensor comes in pieces where it is large; statistics go back under the names of the file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "large.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def make():\n    torch.manual_seed(0)\n    return nn.Sequential(nn.Linear(2000, 1000), nn.BatchNorm1d(1000))\n"
        "def get():\n    torch.manual_seed(1)\n    return make(), [{'input': torch.randn(4, 2000)} for _ in range(3)]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import large

    model, batches = large.get()
    (tmp_path / "run").mkdir()
    for step in (1, 2):
        with torch.no_grad():
            model[0].weight += step
        state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
        torch.save(state, tmp_path / "run" / f"step_{step}.pt")
    with torch.no_grad():
        model[0].weight -= 1  # the mean of both
    recompute_batch_norm(model, [lambda b=b: model(**b) for b in batches])
    said = command(capsys, "average", "run", "--lawa=window=2", "--recompute-batch-norm=large:get", "--out=average.pt")
    assert "pieces of the model in turn" in said
    found = torch.load("average.pt")
    torch.testing.assert_close(found["module.0.weight"], model[0].weight.detach())
    torch.testing.assert_close(found["module.1.running_mean"], model[1].running_mean)
    torch.testing.assert_close(found["module.1.running_var"], model[1].running_var)
    sys.modules.pop("large", None)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("my_batches", "expected MODULE:FUNCTION, as mine:model_and_batches"),
        ("my_batches:nothing", "my_batches has no function nothing"),
        ("my_batches:number", "my_batches has no function number"),
        ("missing_module:f", "there is no module missing_module"),
        ("my_batches:no_batches", "the function gives no batch"),
        ("my_batches:other_model", "the model has no 0.weight, which the checkpoints have"),
        ("my_batches:no_batch_norm", "the model has no 0.weight"),
        ("my_batches:wide", "4.weight is [5, 64] in the model, not [3, 64]"),
        ("my_batches:compiled_names", "the model has no 0.weight"),
        ("my_batches:no_pair", "TypeError: the function gives a Sequential, not (model, batches)\n"),
        ("my_batches:broken", "ValueError: mine (my_batches.py, line "),
        ("my_batches:leaves", "SystemExit: 0 (my_batches.py, line "),
        ("my_batches:leaves_late", "SystemExit: 0 (my_batches.py, line "),
        ("my_batches:no_model", "TypeError: the function gives a str for the model"),
        ("my_batches:wrong_input", "RuntimeError: Expected"),
        ("my_batches:infinite", "is not finite on these batches"),
    ],
)
def test_what_does_not_fit_ends_in_one_line_and_leaves_nothing(run, capsys, function, says):
    folder, _ = run
    said = command(
        capsys, "average", folder / "run", "--lawa=window=3", f"--recompute-batch-norm={function}",
        f"--out={folder / 'out' / 'x.safetensors'}",
    )  # fmt: skip
    assert said.startswith("error: --recompute-batch-norm")
    assert says in said
    assert said.count("\n") == 1
    assert not list(folder.glob("out/*"))
    assert not list(folder.glob("out/.*"))


def test_layers_that_no_batch_reaches_keep_theirs_and_it_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "aside.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = nn.BatchNorm1d(2), nn.BatchNorm1d(2)\n"
        "    def forward(self, x):\n        return self.a(x)\n"
        "def get():\n    return Net(), [torch.randn(4, 2)]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import aside

    assert issubclass(aside.Net, nn.Module)
    for step in (1, 2):
        net = aside.Net()
        net.b.running_mean += step
        torch.save(net.state_dict(), f"step_{step}.pt")
    said = command(
        capsys, "average", "step_1.pt", "step_2.pt", "--lawa=window=2", "--recompute-batch-norm=aside:get", "--out=o.pt"
    )
    assert (
        "statistics of 2 batch norms recomputed from 1 batch; the averaged ones stay in 1 that these do not reach"
        in said
    )
    assert torch.load("o.pt")["b.running_mean"].tolist() == [1.5, 1.5]
    sys.modules.pop("aside", None)
