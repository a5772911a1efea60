"""docs/own_average.md, run as it is in all six places, against a loop in float64."""

import importlib
import json
import re
import subprocess
import sys
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch

from tests.support import ROOT
from weight_averaging import Averager, averages

PAGE = (ROOT / "docs/own_average.md").read_text()
BLOCKS: dict[str, str] = {}
heading = ""
for match in re.finditer(r"^#+ ([^\n]*)$|^```python\n(.*?)^```$", PAGE, re.M | re.S):
    heading = match[1] or heading
    if match[2]:
        BLOCKS[heading] = match[2]


def polynomial(values, eta=3.0):
    """The average by its definition, in float64."""
    average = 0.0
    for number, value in enumerate(values, start=1):
        average += (eta + 1) / (number + eta) * (value - average)
    return average


WANTED = pytest.approx(polynomial([2.0, 4.0, 6.0, 8.0]), rel=1e-6)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The page's module, where Python finds it."""
    (tmp_path / "mine.py").write_text(BLOCKS["An average of your own"])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield importlib.import_module("mine")
    sys.modules.pop("mine")


def printed(block: str, capsys) -> str:
    exec(compile(block, "own_average.md", "exec"), {})
    return capsys.readouterr().out


def test_the_class_has_at_most_15_lines(mine):
    lines = [line for line in BLOCKS["An average of your own"].splitlines() if line.strip()]
    assert len(lines) <= 15
    assert set(BLOCKS) == {
        "An average of your own", "Along training, in PyTorch", "In JAX", "Of saved snapshots", "In a grid",
        "In a submission",
    }  # fmt: skip


@pytest.mark.parametrize("place", ["Along training, in PyTorch", "In JAX", "Of saved snapshots"])
def test_one_average_in_three_places(mine, place, capsys):
    assert float(printed(BLOCKS[place], capsys)) == WANTED


def test_a_grid(mine, capsys):
    lines = dict(line.rsplit(" -> ", 1) for line in printed(BLOCKS["In a grid"], capsys).splitlines())
    assert list(lines) == ["lawa window=3 interval=2", "polynomial interval=2", "polynomial eta=0.0 interval=2"]
    assert list(map(float, lines.values())) == [6.0, WANTED, 5.0]


def test_the_command(mine, tmp_path):
    (tmp_path / "run").mkdir()
    for step in (2, 4, 6, 8):
        torch.save({"weight": torch.full((1,), float(step))}, tmp_path / f"run/step_{step}.pt")
    (flags,) = re.findall(r"^    weight-averaging average runs/mine (.*) --out average.safetensors$", PAGE, re.M)
    command = [sys.executable, "-m", "weight_averaging", "average", "run", *flags.split(), "--out", "average.pt"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert torch.load(tmp_path / "average.pt")["weight"].item() == WANTED


def test_a_submission(mine):
    names: dict = {}
    exec(BLOCKS["In a submission"], names)
    recipe = names["recipe"]
    hyperparameters = SimpleNamespace()
    described = recipe.averages.describe(hyperparameters, 1000)
    assert described == mine.Polynomial(interval=64)

    from submissions.recipe.pytorch.averagers import averager_of

    model = torch.nn.Linear(1, 1, bias=False)
    averager = averager_of(recipe.averages, model, hyperparameters, 1000)
    for step in range(1, 257):
        model.weight.data.fill_(step / 32)
        averager.update(step)
    with averager.averaged():
        assert model.weight.item() == WANTED
    point = json.loads((ROOT / "tuning_search_spaces/nadamw.json").read_text())[0]
    Point = namedtuple("Point", [*point, "averaging_window"])  # which this average does not take
    with pytest.raises(ValueError, match="averaging_window"):
        recipe.check_hyperparameters(Point(*point.values(), 3), 1000)


def test_its_state_is_saved_and_loads_into_the_same_alone(mine):
    def fed(description):
        model = torch.nn.Linear(1, 1, bias=False)
        averager = Averager(model, description)
        for step in range(1, 9):
            model.weight.data.fill_(float(step))
            averager.update(step)
        return model, averager

    model, averager = fed(mine.Polynomial(interval=2))
    again = Averager(model, mine.Polynomial(interval=2))
    again.load_state_dict(averager.state_dict())
    with again.averaged():
        assert model.weight.item() == WANTED
    with pytest.raises(ValueError, match=r"averages=\['polynomial interval=2'\]"):
        Averager(model, mine.Polynomial(eta=1.0, interval=2)).load_state_dict(averager.state_dict())
    with pytest.raises(ValueError, match="polynomial needs an interval"):
        Averager(model, mine.Polynomial())


@pytest.mark.parametrize("shape", averages.SHAPES)
def test_a_merge_of_a_known_number_of_snapshots_along_training(shape):
    described = averages.Merge(shape=shape, window=4, interval=1)
    model = torch.nn.Linear(1, 1, bias=False)
    averager = Averager(model, described)
    values = [5.0, -3.0, 2.0, 7.0, 1.0, 0.5]
    for step, value in enumerate(values, start=1):
        model.weight.data.fill_(value)
        averager.update(step)
        assert averager.ready == (step >= 4)
    wanted = sum(c * v for c, v in zip(described.coefficients(4), values[-4:], strict=True))
    with averager.averaged():
        assert model.weight.item() == pytest.approx(wanted, rel=1e-6)
