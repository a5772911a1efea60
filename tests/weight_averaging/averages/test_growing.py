"""The average that covers a constant share of the updates so far: its equation, in every place that it serves."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weight_averaging import EMA, Averager, offline
from weight_averaging.averages import Growing, Power
from weight_averaging.cli.descriptions import KINDS
from weight_averaging.jax import averaging, ema_growing


@given(st.floats(0.02, 1.0), st.integers(300, 1000))
@settings(max_examples=30, deadline=None)
def test_its_snapshots_are_as_old_as_those_of_a_window_over_the_share(share, count):
    weights = np.array(Growing(share=share).coefficients(count))
    assert weights.sum() == pytest.approx(1.0)
    ages = np.arange(count - 1, -1, -1)
    assert (weights * ages).sum() == pytest.approx((share * count - 1) / 2, rel=0.03, abs=0.6)


def test_it_is_the_power_function_average():
    assert Growing(share=0.1).coefficients(50) == Power(gamma=18.0).coefficients(50)


@pytest.mark.parametrize(("sigma", "gamma"), [(0.05, 16.97), (0.1, 6.94)])  # of the paper
def test_edm2s_relative_width(sigma, gamma):
    assert 2 / Growing.from_sigma_rel(sigma).share - 2 == pytest.approx(gamma, abs=0.005)
    with pytest.raises(ValueError, match="sigma_rel must be in"):
        Growing.from_sigma_rel(0.5)


def test_it_is_the_same_in_every_place():
    values = np.random.default_rng(0).normal(size=24)
    described = Growing(share=0.3, interval=2)
    taken = values[1::2]
    expected = float(np.dot(described.coefficients(len(taken)), taken))
    model = torch.nn.Linear(1, 1, bias=False)
    doors = [EMA.growing(model, 0.3, interval=2), Averager(model, described)]
    functions = [ema_growing(0.3, interval=2), averaging(described)]
    states = [function.init({"weight": jnp.zeros(1)}) for function in functions]
    for step, value in enumerate(values, 1):
        torch.nn.init.constant_(model.weight, float(value))
        for averager in doors:
            averager.update(step)
        states = [f.update(s, {"weight": jnp.full(1, value, jnp.float32)}, step) for f, s in zip(functions, states)]
    plan = offline.Plan([(described, 24)], steps=range(1, 25))
    (result,) = plan.run((step, {"weight": torch.tensor([float(values[step - 1])])}) for step in plan.needed)
    found = [averager.average_state_dict()["weight"].item() for averager in doors]
    found += [float(f.average(s, {"weight": jnp.zeros(1)})["weight"][0]) for f, s in zip(functions, states)]
    found.append(result.state["weight"].item())
    assert found == pytest.approx([expected] * 5, rel=2e-6)
    assert KINDS["growing"] is Growing


def test_it_does_not_know_the_length_of_the_run():
    """A run that is extended goes on as one that was long from the start: nothing has to be told."""
    model = torch.nn.Linear(1, 1, bias=False)
    whole, first = EMA.growing(model), EMA.growing(model)
    for step in range(1, 61):
        torch.nn.init.constant_(model.weight, float(step % 7))
        whole.update(step)
        if step == 30:
            second = EMA.growing(model)
            second.load_state_dict(first.state_dict())
        (first if step < 30 else second).update(step)
    assert torch.equal(whole.average_state_dict()["weight"], second.average_state_dict()["weight"])


@pytest.mark.parametrize("share", [0, -0.1, 1.5, float("nan")])
def test_a_share_that_is_none(share):
    with pytest.raises(ValueError, match="share must be in"):
        Growing(share=share)
