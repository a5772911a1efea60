"""The growing average whose share follows the learning rate: its equation, in every place that it serves."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from launching.evidence import averages as evidence
from tests.support import reference
from tests.support.small_models import saved, scalar_model
from tests.weight_averaging.torch.numbers.test_finite import late_copies
from weight_averaging import Averager, Averages, offline
from weight_averaging.averages import LAWA, FollowsRate, Growing, SnapshotError
from weight_averaging.jax import as_gradient_transformation, averaging, averaging_state, lawa, several
from weight_averaging.jax.nnx import ModelAverager

SCHEDULES = {
    "constant": lambda x: 1.0,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "to a tenth": lambda x: 0.1 + 0.45 * (1 + math.cos(math.pi * x)),
    "linear": lambda x: 1 - x,
    "1/sqrt": lambda x: min(1.0, (0.05 / max(x, 1e-9)) ** 0.5),
    "wsd": lambda x: 1 - math.sqrt(max(0.0, (x - 0.8) / 0.2)),
}
RATES = st.lists(st.floats(1e-6, 1.0) | st.sampled_from([0.0, 0.5]), min_size=1, max_size=40)


def coefficients(weights: list[float]) -> np.ndarray:
    left, result = 1.0, []
    for weight in reversed(weights):
        result.append(left * weight)
        left *= 1 - weight
    return np.array([left, *reversed(result)])


@given(RATES, st.floats(0.01, 1.0), st.none() | st.floats(0.1, 2.0))
@settings(max_examples=150, deadline=None)
def test_the_weight_of_each_snapshot_is_that_of_the_equations(rates, share, top):
    described = FollowsRate(share=share, top_rate=top)
    expected = reference.follows_rate(rates, share, top)
    np.testing.assert_allclose(coefficients(described.weights(rates)), expected, rtol=1e-9, atol=1e-12)
    assert expected.sum() == pytest.approx(1.0)
    assert expected.min() >= 0


@given(st.floats(0.01, 1.0), st.floats(1e-6, 10.0), st.integers(1, 300))
@settings(max_examples=50, deadline=None)
def test_at_a_constant_rate_it_is_the_growing_average(share, rate, count):
    growing = [Growing(share=share).weight(number) for number in range(2, count + 1)]
    assert FollowsRate(share=share).weights([rate] * count) == pytest.approx(growing, rel=1e-12)


def test_so_it_is_in_float32_after_a_million_snapshots():
    described = FollowsRate()
    for number in (2, 100, 10_000, 1_000_000):
        before = jnp.float32(described.share / 2), jnp.float32(3e-4)
        weight, _ = described.enter(jnp.float32(number), jnp.float32(3e-4), before, jnp)
        assert float(weight) == pytest.approx(Growing().weight(number), rel=1e-6)


@given(st.sampled_from(sorted(SCHEDULES)), st.floats(0.05, 0.4), st.integers(200, 600), st.floats(0.3, 1.0))
@settings(max_examples=60, deadline=None)
def test_the_mean_age_follows_the_root_of_the_rate(name, share, count, until):
    rates = [0.01 * SCHEDULES[name](number / count) for number in range(count)][: int(until * count)]
    ages = np.arange(len(rates) - 1, -1, -1)
    found = float((coefficients(FollowsRate(share=share).weights(rates)) * ages).sum())
    wanted = share / 2 * len(rates) * math.sqrt(rates[-1] / max(rates))
    assert found == pytest.approx(max(0.0, wanted - 0.5), rel=0.03, abs=0.5)  # as old as a window: half a snapshot less


@pytest.mark.parametrize("schedule", ["warmup_cosine", "warmup_stable_decay", "warmup_constant"])
def test_the_evidence_tracks_one_that_is_half_a_snapshot_older(schedule):
    """What its runs say of theirs they say of this one: beyond a tenth of training the weights hardly differ."""
    theirs = evidence.averages(3000, 30, schedule, {"warmup_factor": 0.02})["follows_rate_15"]
    factor = getattr(evidence.schedules, schedule)
    for count in (100, 500, 900):
        hyperparameters = type("H", (), dict(theirs.settings))
        rates = [factor(3 * number - 1, 3000, hyperparameters) for number in range(1, count + 1)]
        mine, other = coefficients(FollowsRate(top_rate=1.0).weights(rates)), np.array(theirs.coefficients(count))
        ages = np.arange(count - 1, -1, -1)
        assert (other * ages).sum() - (mine * ages).sum() == pytest.approx(0.5, abs=0.02)
        assert abs(mine - other).sum() < 0.06


def test_at_a_rate_of_zero_it_is_the_latest_snapshot_and_a_restart_grows_again():
    described = FollowsRate(share=0.2)
    assert described.weights([1.0] * 50 + [0.0, 0.0])[-1] == 1.0
    weights = described.weights([1.0] * 50 + [0.0, 0.0] + [1.0] * 200)
    assert weights[51] == pytest.approx(1 / 53)  # not faster than the mean of all
    assert weights[-1] == pytest.approx(Growing(share=0.2).weight(252))


def rate_at(step: int) -> float:
    return 0.1 * (1 - step / 61)


def fed(averager, model, values, first=1, updates=None):
    for step, value in enumerate(values, start=first):
        torch.nn.init.constant_(model.weight, float(value))
        averager.update(step, learning_rate=rate_at(step))
    return averager


@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("start", [1, 10])
def test_it_is_the_same_in_every_place(interval, start):
    values = np.random.default_rng(0).normal(size=60)
    described = FollowsRate(share=0.3, interval=interval, start=start)
    taken = [step for step in range(1, 61) if step % interval == 0 and step >= start]
    expected = reference.follows_rate([rate_at(step) for step in taken], 0.3) @ values[[step - 1 for step in taken]]
    model = scalar_model()
    online = fed(Averager(model, described), model, values).average_state_dict()["weight"]
    plan = offline.Plan([(described, 60)], range(1, 61), learning_rates={s: rate_at(s) for s in range(1, 61)})
    (result,) = plan.run((step, {"weight": torch.full((1, 1), values[step - 1]).float()}) for step in plan.needed)
    assert torch.equal(result.state["weight"], online)  # bit for bit

    averager = averaging(described)
    state = averager.init({"w": jnp.zeros(1)})
    update = jax.jit(lambda state, w, step, rate: averager.update(state, {"w": w}, step, learning_rate=rate))
    for step, value in enumerate(values, start=1):  # under jit with all of it traced
        state = update(state, jnp.full(1, value, jnp.float32), step, rate_at(step))
    shown = averager.average(state, {"w": jnp.zeros(1)})["w"]
    assert [online.item(), float(shown[0])] == pytest.approx([expected] * 2, rel=2e-5, abs=1e-6)


def test_a_run_resumes_bit_for_bit_and_its_state_has_what_it_needs():
    values, described = np.random.default_rng(1).normal(size=60), FollowsRate(interval=2)
    model = scalar_model()
    whole = fed(Averager(model, described), model, values)
    first = fed(Averager(model, described), model, values[:31])
    second = Averager(model, described)
    second.load_state_dict(saved(first))  # through a file of plain values
    fed(second, model, values[31:], first=32)
    assert torch.equal(whole.average_state_dict()["weight"], second.average_state_dict()["weight"])
    assert whole.state_dict()["tracks"][0]["rates"] == second.state_dict()["tracks"][0]["rates"]

    averager = averaging(described)
    states = [averager.init({"w": jnp.zeros(1)})]
    for step, value in enumerate(values, start=1):
        weights = {"w": jnp.full(1, value, jnp.float32)}
        states = [averager.update(state, weights, step, learning_rate=rate_at(step)) for state in states]
        if step == 31:
            leaves, structure = jax.tree.flatten(states[0])
            states.append(jax.tree.unflatten(structure, [jnp.asarray(np.asarray(leaf)) for leaf in leaves]))
    ends = [np.asarray(averager.average(state, {"w": jnp.zeros(1)})["w"]) for state in states]
    assert (ends[0] == ends[1]).all()


ACTIONS = ["update"] * 5 + ["bad", "bad", "reload", "evaluate", "other type", "missed"]


@given(st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=40), st.integers(1, 3), RATES, st.booleans())
@settings(max_examples=120, deadline=None)
def test_whatever_comes_it_is_made_of_the_snapshots_taken_and_of_their_rates(actions, interval, rates, later):
    """Bad snapshots, resumes, evaluations, another type of the model, updates that were not told."""
    described, step = FollowsRate(share=0.4, interval=interval), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weight_averaging.torch.collector.defers", lambda device: later)
        model = scalar_model()
        averager, taken, seen = Averager(model, described), [], []
        for number, action in enumerate(actions):
            if action == "reload":
                state = saved(averager)
                averager = Averager(model, described)
                averager.load_state_dict(state)
            elif action == "evaluate":
                with averager.averaged():
                    pass
            elif action == "other type":
                model.to(torch.float64 if model.weight.dtype == torch.float32 else torch.float32)
            elif action == "missed":
                step += 1
            else:
                step += 1
                rate, value = rates[number % len(rates)], math.inf if action == "bad" else float(number)
                torch.nn.init.constant_(model.weight, value)
                averager.update(step, learning_rate=rate)
                if step % interval == 0 and action == "update":
                    taken.append(rate)
                    seen.append(value)
                torch.nn.init.constant_(model.weight, 0.0)
        assert averager.ready == bool(taken)
        if taken:
            expected = reference.follows_rate(taken, 0.4) @ seen
            assert averager.average_state_dict()["weight"].item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("later", [False, True])  # whether a bad snapshot is known before it is taken in
def test_a_snapshot_that_is_not_finite_leaves_no_trace(later, monkeypatch):
    monkeypatch.setattr("weight_averaging.torch.collector.defers", lambda device: later)
    model = scalar_model()
    values, described = [1.0, 2.0, math.nan, 4.0, 5.0], FollowsRate(share=0.5, interval=1)
    averager = fed(Averager(model, described), model, values)
    weights = reference.follows_rate([rate_at(step) for step in (1, 2, 4, 5)], 0.5)
    found = averager.average_state_dict()["weight"].item()
    assert found == pytest.approx(weights @ [1.0, 2.0, 4.0, 5.0], rel=1e-6)
    own = averaging(described)
    state = own.init({"w": jnp.zeros(1)})
    for step, value in enumerate(values, start=1):
        state = own.update(state, {"w": jnp.full(1, value)}, step, learning_rate=rate_at(step))
    assert float(own.average(state, {"w": jnp.zeros(1)})["w"][0]) == pytest.approx(found, rel=1e-6)


def test_a_snapshot_that_is_still_on_its_way_has_the_weight_of_its_own_rate():
    model, values = scalar_model(), np.random.default_rng(2).normal(size=20)
    described = FollowsRate(share=0.5, interval=2)
    averager = fed(late_copies(Averager(model, described)), model, values)
    alone = fed(Averager(model, described), model, values).average_state_dict()["weight"]
    assert torch.equal(averager.average_state_dict()["weight"], alone)


def test_a_model_that_changes_its_type_keeps_what_it_follows():
    model = scalar_model()
    averager = fed(Averager(model, FollowsRate(interval=1)), model, range(20))
    before = averager.state_dict()["tracks"][0]["rates"]
    model.double()
    fed(averager, model, [20], first=21)
    assert averager.state_dict()["tracks"][0]["rates"][1] == before[1] == rate_at(1)


def test_beside_others():
    model = scalar_model()
    described = FollowsRate(share=0.5, interval=1)
    both = fed(Averages(model, [LAWA(window=2, interval=1), described]), model, [1.0, 2.0, 3.0])
    both.select(described)
    alone = fed(Averager(model, described), model, [1.0, 2.0, 3.0]).average_state_dict()["weight"]
    assert torch.equal(both.average_state_dict()["weight"], alone)
    assert fed(Averager(model, LAWA(window=2, interval=1)), model, [1.0, 2.0]).ready  # has no use for the rate

    grid = several(window=lawa(1, 2), follows=averaging(described))
    states = grid.init({"w": jnp.zeros(1)})
    for step in (1, 2, 3):
        states = grid.update(states, {"w": jnp.full(1, float(step))}, step, learning_rate=rate_at(step))
    found = grid.average(states, {"w": jnp.zeros(1)})
    assert float(found["follows"]["w"][0]) == pytest.approx(alone.item(), rel=1e-6)


def test_at_the_end_of_a_chain_of_optax():
    averager = averaging(FollowsRate(share=0.5, interval=1))
    optimizer = optax.chain(optax.sgd(1.0), as_gradient_transformation(averager))
    params = {"w": jnp.zeros(1)}
    state = optimizer.init(params)
    for step in (1, 2, 3):
        updates, state = optimizer.update({"w": -jnp.ones(1)}, state, params, learning_rate=rate_at(step))
        params = optax.apply_updates(params, updates)
    found = float(averager.average(averaging_state(state), params)["w"][0])
    assert found == pytest.approx(reference.follows_rate([rate_at(s) for s in (1, 2, 3)], 0.5) @ [1.0, 2.0, 3.0])


def test_beside_a_model_of_nnx():
    model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    held = ModelAverager(model, averaging(FollowsRate(share=0.5, interval=1)))
    for step in (1, 2, 3):
        model.kernel = nnx.Param(jnp.full((1, 1), float(step)))
        held.update(model, step, learning_rate=rate_at(step))
    expected = reference.follows_rate([rate_at(s) for s in (1, 2, 3)], 0.5) @ [1.0, 2.0, 3.0]
    with held.averaged(model):
        assert float(model.kernel[0, 0]) == pytest.approx(expected, rel=1e-6)


def test_what_is_missing_or_none_is_said_in_one_line():
    described = FollowsRate(interval=5)
    averager = Averager(scalar_model(), described)
    missing = r"followsrate interval=5 follows the learning rate, which is missing: give it to every update"
    with pytest.raises(TypeError, match=missing):
        averager.update(1)  # at once, not where a snapshot is due
    for rate in (-0.1, math.nan, math.inf, "x", True, torch.zeros(2)):
        with pytest.raises(ValueError, match="learning_rate must be a number >= 0, not"):
            averager.update(1, learning_rate=rate)
    assert averager.step == 0
    averager.update(1, learning_rate=torch.tensor(0.1))
    own = averaging(described)
    state = own.init({"w": jnp.zeros(1)})
    with pytest.raises(TypeError, match=missing):
        own.update(state, {"w": jnp.zeros(1)}, 5)
    state = own.update(state, {"w": jnp.zeros(1)}, 5, learning_rate=jnp.float32(math.nan))
    assert (int(state.count), int(state.refused)) == (0, 1)
    with pytest.raises(SnapshotError, match="that of step 10 is not known: it is read from the state of a torch opti"):
        offline.Plan([(described, 10)], [5, 10], learning_rates={5: 0.1})
    for top in (0, -1.0, math.nan, "x"):
        with pytest.raises(ValueError, match="top_rate must be a number > 0"):
            FollowsRate(top_rate=top)
    with pytest.raises(ValueError, match="share must be in"):
        FollowsRate(share=0)
    with pytest.raises(ValueError, match="has no weights without learning rates"):
        described.coefficients(3)
