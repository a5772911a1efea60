"""States that release 0.2.0 saved, and states that are refused."""

import copy

import pytest
import torch

from tests.support import ROOT
from tests.support.small_models import randomise
from weight_averaging import EMA, LAWA, Averager, averages

STATES = ROOT / "tests/weight_averaging/torch/states/states_of_0_2_0"


@pytest.mark.parametrize("described", [False, True], ids=["by its door", "by a description"])
@pytest.mark.parametrize("name", ["lawa", "ema"])
@pytest.mark.parametrize("swapped", ["", "_swapped"], ids=["plain", "swapped"])
def test_states_of_0_2_0_load(name, swapped, described):
    """Written by release 0.2.0: what the model, the averager and the average held after nine updates."""
    then = torch.load(STATES / f"{name}{swapped}.pt", weights_only=True)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    doors = {"lawa": lambda: LAWA(model, interval=2, window=3), "ema": lambda: EMA(model, decay=0.75, interval=2)}
    kinds = {"lawa": averages.LAWA(interval=2, window=3), "ema": averages.EMA(decay=0.75, interval=2)}
    averager = Averager(model, kinds[name]) if described else doors[name]()
    model.load_state_dict(then["model"])
    averager.load_state_dict(then["averager"])
    assert averager.step == 9
    raw = then["raw"] if swapped else then["model"]
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, raw[key]), key
    for key, tensor in averager.average_state_dict().items():
        assert torch.equal(tensor, then["average"][key]), key
    # And what is saved now is what was saved then, but for the raw weights of that moment.
    now = averager.state_dict()
    assert set(now) == set(then["averager"])
    for key in set(now) - {"raw", "checksums", "tracks"}:
        assert now[key] == then["averager"][key], key
    for mine, theirs in zip(now["tracks"], then["averager"]["tracks"], strict=True):
        assert {k: v for k, v in mine.items() if k != "vectors"} == {k: v for k, v in theirs.items() if k != "vectors"}
        assert all(map(torch.equal, mine["vectors"], theirs["vectors"]))


def randomised(averager, model):
    for step in (1, 2):
        randomise(model, step)
        averager.update(step)


def test_a_refused_state_changes_nothing():
    """Neither what is averaged, nor what is held, nor what the model holds: also while swapped."""
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
    model[1].requires_grad_(False)
    averager = LAWA(model, interval=1, window=2)
    randomised(averager, model)
    names, before = list(averager._weights.names), copy.deepcopy(averager.state_dict())

    other = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
    theirs = LAWA(other, interval=1, window=2)
    randomised(theirs, other)
    state = theirs.state_dict()  # would have the frozen layer averaged too
    state["tracks"][0]["vectors"] = [vector[:-1] for vector in state["tracks"][0]["vectors"]]
    for swapped in (False, True):
        if swapped:
            averager.swap_in()
        held = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match="a saved vector has 3 elements, its shapes 4"):
            averager.load_state_dict(state)
        assert averager._weights.names == names
        assert averager.swapped == swapped
        assert all(torch.equal(tensor, held[key]) for key, tensor in model.state_dict().items())
        averager.swap_out()
        now = averager.state_dict()
        assert all(map(torch.equal, now["tracks"][0]["vectors"], before["tracks"][0]["vectors"]))
