"""Averages that training follows: from the initial weights, with a decay that changes, taken over into training."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.small_models import average_of, feed, flat, model_of, randomise, saved, scalar_model
from weight_averaging import averages, offline
from weight_averaging.averages import Ramp
from weight_averaging.torch import EMA, LAWA, Averager, Averages

RAMPS = st.builds(
    Ramp,
    decay=st.floats(0, 0.999),
    final=st.floats(0, 1),
    length=st.integers(1, 30),
    shape=st.sampled_from(["cosine", "linear"]),
    interval=st.integers(1, 3),
    start=st.integers(0, 3),
)


def scheduled(ramp, k):
    """The decay of update k = 0, 1, ... as papers write it."""
    x = min(1.0, k / ramp.length)
    left = (math.cos(math.pi * x) + 1) / 2 if ramp.shape == "cosine" else 1 - x
    return ramp.final - (ramp.final - ramp.decay) * left


def by_definition(ramp, values):
    average = values[0]
    for k, value in enumerate(values[1:]):
        average = scheduled(ramp, k) * average + (1 - scheduled(ramp, k)) * value
    return average


@settings(max_examples=80, deadline=None)
@given(RAMPS, st.integers(2, 40), st.integers(1, 39))
def test_a_ramp_is_its_definition_and_resumes(ramp, updates, broken):
    """Along training, and of saved snapshots."""
    model = scalar_model(torch.float64)
    averager = Averager(model, ramp)
    values = np.random.default_rng(updates).normal(size=updates + 1)
    snapshots = {}
    for step in range(0 if ramp.start == 0 else 1, updates + 1):
        torch.nn.init.constant_(model.weight, values[step])
        averager.update(step)
        snapshots[step] = {"weight": model.weight.detach().clone()}
        if step == broken:
            state = saved(averager)
            averager = Averager(model, ramp)
            averager.load_state_dict(state)
    taken = [s for s in snapshots if s >= ramp.start and s % ramp.interval == 0]
    if not taken:
        return
    expected = by_definition(ramp, [values[s] for s in taken])
    assert average_of(averager, model) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    plan = offline.Plan([(ramp, updates)], list(snapshots))
    (result,) = plan.run((step, snapshots[step]) for step in plan.needed)
    assert result.state["weight"].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_ramp_goes_from_one_decay_to_the_other_and_stays():
    ramp = Ramp(decay=0.996, length=100, interval=1)
    assert 1 - ramp.weight(2) == pytest.approx(0.996)
    assert 1 - ramp.weight(52) == pytest.approx(0.998)
    assert ramp.weight(102) == ramp.weight(5000) == 0.0
    assert str(ramp) == "ramp decay=0.996 length=100 interval=1"


def test_ramps_of_other_settings_do_not_take_each_others_state():
    model = scalar_model()
    one = Averager(model, Ramp(decay=0.5, length=10, interval=1))
    feed(one, model, [1.0, 2.0])
    other = Averager(model, Ramp(decay=0.5, length=20, interval=1))
    with pytest.raises(ValueError, match="length=10"):
        other.load_state_dict(saved(one))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"decay": 1.0}, "decay must be a number in"),
        ({"final": 1.5}, r"final must be a number in \[0, 1\], not 1.5"),
        ({"length": 0}, "length must be a whole number >= 1"),
        ({"shape": "cos"}, "shape must be cosine or linear, not 'cos'"),
    ],
)
def test_a_ramp_that_cannot_be_is_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        Ramp(**{"decay": 0.5, "length": 3, **wrong})


def test_a_function_as_a_decay_is_told_what_to_do():
    with pytest.raises(ValueError, match=r"a decay that changes is averages\.Ramp"):
        EMA(scalar_model(), decay=lambda step: 0.5)


BEGINNINGS = {
    "ema": lambda model, **options: EMA(model, decay=0.5, **options),
    "lawa": lambda model, **options: LAWA(model, interval=1, window=2, **options),
    "ramp": lambda model, start=1: Averager(model, Ramp(decay=0.5, final=0.5, length=3, interval=1, start=start)),
}
every = pytest.mark.parametrize("make", BEGINNINGS.values(), ids=BEGINNINGS)


@every
def test_an_average_may_begin_at_the_initial_weights(make):
    model = scalar_model()
    averager = make(model, start=0)
    feed(averager, model, [10.0, 0.0], first_step=0)
    assert averager.step == 1
    assert average_of(averager, model) == 5.0
    resumed = make(model, start=0)
    resumed.load_state_dict(saved(averager))
    for one in (averager, resumed):
        feed(one, model, [4.0], first_step=2)
    assert average_of(averager, model) == average_of(resumed, model)


@every
def test_the_initial_weights_are_not_forgotten_nor_taken_unasked(make):
    model = scalar_model()
    with pytest.raises(ValueError, match=r"update\(0\) before update\(1\).*made with start=0"):
        make(model).update(0)
    averager = make(model, start=0)
    with pytest.raises(ValueError, match=r"update\(1\) of an average that begins at the initial weights"):
        averager.update(1)
    assert averager.update(0)
    resumed = make(model, start=0)
    resumed.load_state_dict(saved(averager))
    for one in (averager, resumed, *copy.deepcopy((model, averager))[1:]):
        with pytest.raises(ValueError, match="before update"):
            one.update(0)
    assert averager.update(1)


def test_some_averages_of_a_grid_begin_at_the_initial_weights():
    model = scalar_model()
    grid = Averages(model, [averages.EMA(decay=0.5, interval=2, start=0), averages.EMA(decay=0.5, interval=2)])
    feed(grid, model, [8.0, 1.0, 2.0], first_step=0)
    seen = []
    for average in grid.averages:
        grid.select(average)
        seen.append(average_of(grid, model))
    assert seen == [5.0, 2.0]


@every
@pytest.mark.parametrize("how", ["at once", "while swapped", "in a block"])
def test_training_goes_on_from_an_adopted_average(make, how):
    model = scalar_model()
    averager = make(model)
    feed(averager, model, [1.0, 2.0])
    if how == "while swapped":
        averager.swap_in()
    if how == "in a block":
        with averager.averaged():
            averager.adopt()
    else:
        averager.adopt()
    assert model.weight.item() == 1.5
    assert not averager.swap_out()
    assert not averager.swapped
    held = average_of(averager, model)
    assert held == 1.5
    feed(averager, model, [3.5], first_step=3)
    assert average_of(averager, model) == (2.75 if averager.name == "LAWA" else 2.5)
    assert model.weight.item() == 3.5


@every
def test_there_must_be_an_average_to_adopt(make):
    model = scalar_model()
    torch.nn.init.constant_(model.weight, 3.0)
    averager = make(model)
    with pytest.raises(RuntimeError, match="no average to adopt yet"):
        averager.adopt()
    assert model.weight.item() == 3.0


def test_an_adopted_average_has_its_batch_norm_statistics_and_the_optimizer_its_moments():
    model = model_of()
    averager = LAWA(model, interval=1, window=2)
    optimizer = torch.optim.Adam(model.parameters())
    for step in (1, 2):
        model(torch.randn(4, 3)).sum().backward()
        optimizer.step()
        randomise(model, step)
        averager.update(step)
    moments = copy.deepcopy(optimizer.state_dict())
    with averager.averaged():
        expected = flat(model)
    averager.adopt()
    assert (flat(model) == expected).all()
    for before, after in zip(moments["state"].values(), optimizer.state_dict()["state"].values()):
        assert torch.equal(before["exp_avg"], after["exp_avg"])
    recomputed = LAWA(model, interval=1, window=1, buffers="recompute")
    recomputed.update(1)
    with pytest.raises(TypeError, match='buffers="recompute" needs a function'):
        recomputed.adopt()
    recomputed.adopt(lambda: model[1].running_mean.fill_(7.0))
    assert (model[1].running_mean == 7.0).all()
