"""The average that covers a constant share of the updates so far: its equation, in every place that it serves."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.small_models import average_of, saved, scalar_model
from weight_averaging import EMA, Averager, offline
from weight_averaging.averages import FollowsRate, Growing, Power
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


def test_of_few_snapshots_it_is_their_mean_weighted_towards_the_latest():
    growing = Growing(share=0.5)  # exponent 2
    assert growing.coefficients(1) == [1.0]
    assert growing.coefficients(2) == pytest.approx([1 / 8, 7 / 8])
    assert growing.coefficients(3) == pytest.approx([1 / 27, 7 / 27, 19 / 27])


def test_with_a_start_the_share_counts_from_there():
    """A warm-up that should not be in it leaves no trace: as if training had begun after it."""
    model = torch.nn.Linear(1, 1, bias=False)
    late, alone = EMA.growing(model, start=21, interval=2), EMA.growing(model, interval=2)
    for step in range(1, 61):
        torch.nn.init.constant_(model.weight, float(step % 7))
        late.update(step)
        if step > 20:
            alone.update(step - 20)
    assert late.snapshot_steps == [60]
    assert torch.equal(late.average_state_dict()["weight"], alone.average_state_dict()["weight"])


def test_a_bfloat16_model_is_averaged_in_float32():
    model = scalar_model(torch.bfloat16)
    ema, seen = EMA.growing(model), []
    for value in np.random.default_rng(3).normal(size=200):
        torch.nn.init.constant_(model.weight, float(value))
        seen.append(model.weight.item())
        ema.update(len(seen))
    (held,) = ema.state_dict()["tracks"][0]["vectors"]
    assert held.dtype == torch.float32
    assert held.item() == pytest.approx(np.dot(Growing().coefficients(200), seen), rel=1e-5, abs=1e-6)
    assert average_of(ema, model) == held.bfloat16().item()


def test_after_a_million_updates_it_moves_on_in_float64_or_with_an_interval():
    """A new snapshot's weight is then 13 in a million: times a difference of .1 %, float32 rounds it away."""

    def moved(interval, dtype, target=1.001):
        model = scalar_model()
        torch.nn.init.constant_(model.weight, 1.0)
        ema = EMA.growing(model, interval=interval, dtype=dtype)
        ema.update(interval)
        state = saved(ema)
        state["step"], state["tracks"][0]["count"] = 1_000_000, 1_000_000 // interval
        state["tracks"][0]["snapshot_steps"] = [1_000_000]
        ema.load_state_dict(state)
        torch.nn.init.constant_(model.weight, target)
        for step in range(1_000_000 + interval, 1_002_001, interval):
            ema.update(step)
        return ema.state_dict()["tracks"][0]["vectors"][0].item() - 1.0

    expected = 0.001 * (1 - (1_000_000 / 1_002_000) ** (2 / 0.15 - 1))
    assert moved(1, torch.float32) == 0.0
    assert moved(1, torch.float64) == pytest.approx(expected, rel=1e-3)
    assert moved(1000, torch.float32) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("interval", [1, 3])
def test_it_does_not_know_the_length_of_the_run(interval):
    """A run that is extended goes on as one that was long from the start: nothing has to be told."""
    model = torch.nn.Linear(1, 1, bias=False)
    whole, first = (EMA.growing(model, interval=interval) for _ in range(2))
    for step in range(1, 61):
        torch.nn.init.constant_(model.weight, float(step % 7))
        whole.update(step)
        if step == 30:
            second = EMA.growing(model, interval=interval)
            second.load_state_dict(first.state_dict())
        (first if step < 30 else second).update(step)
    assert torch.equal(whole.average_state_dict()["weight"], second.average_state_dict()["weight"])


@given(
    st.sampled_from([1, 3, 20]),
    st.sampled_from([1, 4, 20]),
    st.sampled_from(["growing", "follows the rate", "warm-up"]),
    st.integers(200, 260),
)
@settings(max_examples=15, deadline=None)
def test_with_another_interval_it_covers_the_same_share_of_the_updates(interval, another, kind, resumed):
    """What was taken in counts by its updates: soon the run is one that had the new interval from the start."""

    def made(model, interval):
        if kind == "growing":
            return EMA.growing(model, 0.3, interval=interval)
        if kind == "warm-up":
            return EMA(model, decay=0.9999, warmup=True, interval=interval)
        return Averager(model, FollowsRate(share=0.3, interval=interval))

    models = [torch.nn.Linear(1, 1, bias=False, dtype=torch.float64) for _ in range(2)]
    first, fresh = made(models[0], interval), made(models[1], another)
    averagers = [first, fresh]
    for step in range(1, 1001):
        for model, averager in zip(models, averagers):
            torch.nn.init.constant_(model.weight, float(step))
            averager.update(step, learning_rate=0.1)
        if step == resumed:
            averagers[0] = made(models[0], another)
            averagers[0].load_state_dict(first.state_dict(), settings="new")
    ages = [1000 - average_of(averager, model) for averager, model in zip(averagers, models)]
    assert ages[0] == pytest.approx(ages[1], rel=0.05)


@pytest.mark.parametrize("share", [0, -0.1, 1.5, float("nan")])
def test_a_share_that_is_none(share):
    with pytest.raises(ValueError, match="share must be in"):
        Growing(share=share)
