"""The learning-rate schedules in closed form, and as functions of the update."""

import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from submissions.recipe import schedules
from submissions.recipe.pytorch.schedules import (
    warmup_constant,
    warmup_cosine,
    warmup_inverse_sqrt,
    warmup_stable_decay,
)


@pytest.mark.parametrize("warmup", [0.0, 0.1])
@pytest.mark.parametrize("final", [None, 0.1])
@pytest.mark.parametrize("fraction", [None, 0.5])
def test_the_cosine_schedule_in_closed_form(warmup, final, fraction):
    options = {"final_lr_factor": final, "schedule_fraction": fraction}
    given = {name: value for name, value in options.items() if value is not None}
    rates = rates_of(warmup_cosine, SimpleNamespace(warmup_factor=warmup, **given))
    total = 100 if fraction is None else 50
    steps, low = int(warmup * total), final or 0.0
    for t, rate in enumerate(rates):
        if t < steps:
            expected = t / steps
        else:
            expected = low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1, (t - steps) / (total - steps))))
        assert rate == pytest.approx(2.0 * expected, abs=1e-9), t


def test_without_decay_the_rate_stays_at_the_top():
    rates = rates_of(warmup_constant, SimpleNamespace(warmup_factor=0.1))
    assert rates[:11] == pytest.approx([2.0 * t / 10 for t in range(11)], abs=1e-9)
    assert set(rates[10:]) == {2.0}


@pytest.mark.parametrize(("warmup", "share", "final"), [(0.1, None, 0.0), (0.0, 0.5, 0.1), (0.3, 1.0, 0.0)])
def test_a_constant_rate_with_a_short_decay_in_closed_form(warmup, share, final):
    given = {} if share is None else {"decay_share": share}
    rates = rates_of(warmup_stable_decay, SimpleNamespace(warmup_factor=warmup, final_lr_factor=final, **given))
    up = round(100 * warmup)
    begin = max(up, 100 - round(100 * (share or 0.2)))
    for t, rate in enumerate(rates):
        if t < up:
            expected = t / up
        elif t <= begin:
            expected = 1.0
        else:
            expected = final + (1 - final) * (1 - math.sqrt(min(1, (t - begin) / (100 - begin))))
        assert rate == pytest.approx(2.0 * expected, abs=1e-9), t


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.25])
def test_a_rate_that_falls_with_the_root_of_the_updates_in_closed_form(warmup):
    rates = rates_of(warmup_inverse_sqrt, SimpleNamespace(warmup_factor=warmup))
    up = round(100 * warmup)
    for t, rate in enumerate(rates):
        expected = t / up if t < up else (max(1, up) / max(1, t)) ** 0.5
        assert rate == pytest.approx(2.0 * expected, abs=1e-9), t
    at = [schedules.warmup_inverse_sqrt(150, hint, SimpleNamespace(warmup_factor=10 / hint)) for hint in (100, 9000)]
    assert at[0] == at[1]  # but for the warmup it does not know how long the run will be


def rates_of(schedule, hyperparameters) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # torch 2.5's SequentialLR calls what it deprecates.
        warnings.filterwarnings("ignore", "The epoch parameter in `scheduler.step")
        scheduler = schedule(optimizer, hyperparameters, 100)
        rates = []
        for _ in range(110):  # ten beyond the step_hint
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return rates


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(
        [
            (schedules.warmup_cosine, warmup_cosine),
            (schedules.warmup_constant, warmup_constant),
            (schedules.warmup_stable_decay, warmup_stable_decay),
            (schedules.warmup_inverse_sqrt, warmup_inverse_sqrt),
        ]
    ),
    st.floats(0.0, 0.9),
    st.floats(0.0, 1.0),
    st.floats(0.05, 1.0),
)
def test_the_schedule_as_a_function_is_that_of_pytorch(pair, warmup, final, fraction):
    function, scheduler = pair
    hyperparameters = SimpleNamespace(warmup_factor=warmup, final_lr_factor=final, schedule_fraction=fraction)
    factors = [2.0 * function(step, 100, hyperparameters) for step in range(110)]
    assert rates_of(scheduler, hyperparameters) == pytest.approx(factors, abs=1e-9)
