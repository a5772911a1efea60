"""docs/teachers.md, run as it is, against the moving averages by their definitions in float64."""

import math
import re

import pytest
import torch

from tests.support import ROOT
from weight_averaging import Averager
from weight_averaging.averages import Ramp

BLOCKS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/teachers.md").read_text(), re.M | re.S)


def follow(snapshots, decays):
    """ema <- decay ema + (1 - decay) snapshot, from the first one on."""
    average = snapshots[0].double()
    for snapshot, decay in zip(snapshots[1:], decays):
        average = decay * average + (1 - decay) * snapshot.double()
    return average


class Seen:
    """What an averager is shown: stands in front of `update`."""

    def __init__(self, patch):
        self.snapshots = {}
        update = Averager.update

        def noted(averager, step):
            weight = averager._model[2].weight.detach().clone()
            self.snapshots.setdefault(id(averager), []).append(weight)
            return update(averager, step)

        patch.setattr(Averager, "update", noted)

    def __call__(self, averager):
        return self.snapshots[id(averager)]


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The names that the page's blocks leave behind, and what their averagers have seen."""
    pytest.importorskip("jax")
    monkeypatch.chdir(tmp_path)
    seen, names = Seen(monkeypatch), {"__name__": "teachers"}
    values = {}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"teachers.md, block {number + 1}", "exec"), names)
        if "ema" in names and "ema" not in values:
            values["ema"] = names["ema"].average_state_dict()["2.weight"], names["teacher"][2].weight.clone()
        if "ramp" in names and "ramp" not in values:
            values["ramp"] = names["ramp"].average_state_dict()["2.weight"]
    return names, seen, values


def test_the_page_says_what_its_averagers_do(page):
    names, seen, values = page
    ema, of_teacher = values["ema"]
    expected = follow(seen(names["ema"])[:31], [0.99] * 30)
    torch.testing.assert_close(ema.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(ema, of_teacher)
    decays = [1 - (1 - 0.996) * (math.cos(math.pi * k / 30) + 1) / 2 for k in range(30)]
    torch.testing.assert_close(values["ramp"].double(), follow(seen(names["ramp"]), decays), rtol=1e-5, atol=1e-6)
    stairs = names["stairs"]
    assert [stairs.averages[0].weight(number) for number in (2, 11, 12, 22)] == [0.1, 0.1, 0.05, 0.025]
    assert stairs.snapshot_steps == [0]


def test_a_ramp_is_the_same_in_jax():
    jax = pytest.importorskip("jax")
    from weight_averaging.jax import averaging

    for shape in ("cosine", "linear"):
        described = Ramp(decay=0.6, final=0.95, length=7, shape=shape, interval=2, start=0)
        model = torch.nn.Linear(1, 1, bias=False)
        online, mover = Averager(model, described), averaging(described)
        state = mover.init({"w": jax.numpy.zeros(1)})
        update = jax.jit(mover.update)
        for step in range(24):
            torch.nn.init.constant_(model.weight, math.sin(step))
            online.update(step)
            state = update(state, {"w": jax.numpy.full(1, model.weight.item())}, step)
        with online.averaged():
            found = mover.average(state, {"w": jax.numpy.zeros(1)})["w"].item()
            assert found == pytest.approx(model.weight.item(), rel=1e-5)
        assert int(state.count) == 12
