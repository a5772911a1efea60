"""Averages with a long memory in JAX: float32 stalls, a compensated one does not."""

from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.weight_averaging.jax.test_jax_agreement import double
from weight_averaging import averages, convert
from weight_averaging.errors import UsageError
from weight_averaging.jax import (
    CompensatedEMAState,
    CompensatedFollowsRateState,
    averaging,
    averaging_for,
    ema,
    ema_for_run,
    ema_growing,
    lawa,
    several,
)
from weight_averaging.torch import EMA

UPDATES = 60_000
DESCRIPTIONS = {
    "ema": averages.EMA(decay=0.9999, interval=1),
    "longer": averages.EMA(decay=0.99999, interval=1, warmup=True),
    "growing": averages.Growing(share=0.15, interval=1),
    "mean of all": averages.Growing(share=1.0, interval=1),
    "ramp": averages.Ramp(decay=0.9, length=50_000, interval=1),
}


def path(kind, size, noise, seed, functions, step):
    """float32[4]: weights after update `step`, around `size`: a step, a climb, a wave, and a zero; with noise."""
    t = functions.asarray(step, "float32")
    moved = {"step": (t > 1) * 2e-4, "climb": t * 1e-8, "wave": functions.sin(t / 3000) * 1e-3}[kind]
    shaken = functions.sin(t * functions.asarray([12.9898, 78.233, 3.7, 1.0], "float32") + seed % 1000)
    scale = functions.asarray([1.0, -30.0, 0.01, 0.0], "float32")
    return (scale * (1.0 + moved + noise * shaken) * size).astype("float32")


@partial(jax.jit, static_argnums=(0, 1))
def both(averager, kind, size, noise, seed):
    """The state after all updates, and the weights there were."""
    weights = jax.vmap(lambda step: path(kind, size, noise, seed, jnp, step))(jnp.arange(1, UPDATES + 1))

    def body(state, inputs):
        return averager.update(state, {"w": inputs[0]}, inputs[1]), None

    state = averager.init({"w": weights[0]})
    return jax.lax.scan(body, state, (weights, jnp.arange(1, UPDATES + 1)))[0], weights


def exact(described, weights):
    held = weights[0].astype(np.float64)
    for number, value in enumerate(weights[1:].astype(np.float64), start=2):
        held = held + described.weight(number) * (value - held)
    return held


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(list(DESCRIPTIONS)),
    st.sampled_from(["step", "climb", "wave"]),
    st.sampled_from([1.0, 1e-20, 1e20]),
    st.sampled_from([0.0, 1e-5, 0.1]),
    st.integers(0, 2**16),
)
def test_a_compensated_average_is_that_of_float64(name, kind, size, noise, seed):
    """Over 60,000 updates, to the last bit but one of float32 and a millionth of how far the weights are away."""
    described = DESCRIPTIONS[name]
    state, weights = both(averaging(described, compensated=True), kind, size, noise, seed)
    weights = np.asarray(weights)
    expected, found = exact(described, weights), np.asarray(state.ema["w"])
    spread = np.abs(weights - expected).max(0)
    np.testing.assert_array_less(np.abs(found - expected), np.spacing(np.abs(found)) + 1e-6 * spread + 1e-45)
    whole = found.astype(np.float64) + np.asarray(state.compensation["w"])
    np.testing.assert_array_less(np.abs(whole - expected), 1e-6 * spread + 1e-12 * np.abs(expected) + 1e-45)
    assert int(state.count) == UPDATES


LONG, PER_CALL = 100_000, 20_000
FOLLOWS = averages.FollowsRate(interval=1)
SCHEDULES = {
    "cosine": lambda x: (1 + np.cos(np.pi * x)) / 2,
    "to a tenth": lambda x: np.minimum(1, x / 0.05) * (0.1 + 0.45 * (1 + np.cos(np.pi * x))),
    "wsd": lambda x: np.where(x < 0.8, 1.0, 1 - np.sqrt(np.maximum(0, (x - 0.8) / 0.2))),
    "restarts": lambda x: 1 - (4 * x) % 1,
    "never": lambda x: 0 * x,
}


@partial(jax.jit, static_argnums=0)
def going_on(averager, state, weights, steps, rates):
    def body(state, inputs):
        return averager.update(state, {"w": inputs[0]}, inputs[1], learning_rate=inputs[2]), None

    return jax.lax.scan(body, state, (weights, steps, rates))[0]


@settings(max_examples=8, deadline=None)
@example("to a tenth", 1.0, "step", 0.1, 0)  # in which the rates count most
@given(
    st.sampled_from(list(SCHEDULES)),
    st.sampled_from([0.5, 0.97, 1.0, 2.0]),
    st.sampled_from(["step", "climb", "wave"]),
    st.sampled_from([0.0, 1e-5, 0.1]),
    st.integers(0, 2**16),
)
def test_one_that_follows_the_rate_is_that_of_float64(schedule, length, kind, noise, seed):
    """Over 1e5 updates of a schedule of that length, to the last bit but one and 1e-5 of how far the weights are away.

    That is from the rates: how much they fall from one update to the next, float32 knows to a few digits.
    """
    steps = np.arange(1, LONG + 1)
    weights = path(kind, 1.0, noise, seed, np, steps[:, None])
    rates = (3e-4 * SCHEDULES[schedule](np.minimum(1.0, steps / (length * LONG)))).astype(np.float32)
    expected = weights[0].astype(np.float64)
    for value, weight in zip(weights[1:].astype(np.float64), FOLLOWS.weights(rates.tolist()), strict=True):
        expected = expected + weight * (value - expected)
    averager = averaging(FOLLOWS, compensated=True)
    state = averager.init({"w": jnp.asarray(weights[0])})
    for begin in range(0, LONG, PER_CALL):
        some = slice(begin, begin + PER_CALL)
        state = going_on(
            averager, state, jnp.asarray(weights[some]), jnp.asarray(steps[some]), jnp.asarray(rates[some])
        )
    found, spread = np.asarray(state.ema["w"]), np.abs(weights - expected).max(0)
    np.testing.assert_array_less(np.abs(found - expected), np.spacing(np.abs(found)) + 1e-5 * spread + 1e-45)
    whole = found.astype(np.float64) + np.asarray(state.compensation["w"])
    np.testing.assert_array_less(np.abs(whole - expected), 1e-5 * spread + 1e-12 * np.abs(expected) + 1e-45)
    assert int(state.count) == LONG


def test_without_compensation_float32_stalls():
    """What the option is for."""
    described = DESCRIPTIONS["ema"]
    for compensated in (False, True):
        state, weights = both(averaging(described, compensated=compensated), "step", 1.0, 0.0, 0)
        expected = exact(described, np.asarray(weights))[0]
        assert expected == pytest.approx(1 + 2e-4 * (1 - 0.9999**UPDATES), abs=1e-7)
        assert float(state.ema["w"][0]) == (pytest.approx(expected, abs=1e-7) if compensated else 1.0)


@pytest.mark.parametrize("decay", [0.99998, 0.999991])  # told once in a process
def test_a_dead_zone_of_more_than_a_thousandth_is_told_once(decay, caplog):
    params = {"w": jnp.zeros(2, jnp.bfloat16), "seen": jnp.int32(3)}
    with caplog.at_level("WARNING", "weight_averaging"):
        ema(decay, compensated=True).init(params)
        ema(0.9999).init(params)
        ema_growing().init(params)
        lawa(1, 3).init(params)
        with double():
            ema(decay).init({"w": jnp.zeros(2, jnp.float64)})
        assert not caplog.messages
        for _ in range(2):
            ema(decay).init(params)
    (message,) = caplog.messages
    assert message == (
        f"ema decay={decay} interval=1 stands still in float32 where the weights differ from it by less than "
        f"{2**-25 / (1 - decay):.0e} of their size: one with compensated=True does not"
    )


def test_what_is_compensated_is_a_recursion_in_every_door():
    for averager in (
        ema(0.5, compensated=True),
        ema(share=0.5, compensated=True),
        ema_for_run(1000, compensated=True),
        ema_growing(compensated=True),
        averaging(averages.Ramp(decay=0.5, length=3, interval=1), compensated=True),
        averaging_for({"w": jnp.zeros(2)}, averages.EMA(decay=0.5, interval=1), compensated=True),
        averaging(FOLLOWS, compensated=True),
    ):
        state = averager.init({"w": jnp.zeros(2), "seen": jnp.int32(3)})
        follows = averager.described is FOLLOWS
        assert isinstance(state, CompensatedFollowsRateState if follows else CompensatedEMAState)
        assert jax.tree.structure(state.compensation) == jax.tree.structure(state.ema)
        assert state.compensation["w"].dtype == jnp.float32
        assert state.compensation["seen"].dtype == jnp.bool_
    window = averages.LAWA(interval=1, window=2)
    for make in (averaging, partial(averaging_for, {"w": jnp.zeros(2)})):
        with pytest.raises(UsageError, match=r"^lawa window=2 interval=1 is made anew of its snapshots.*leave it out$"):
            make(window, compensated=True)
        with pytest.raises(ValueError, match="compensated must be True or False, not 'yes'"):
            make(averages.EMA(decay=0.5, interval=1), compensated="yes")
    assert ema(0.5) != ema(0.5, compensated=True)
    for one, other in ((ema(0.5), ema(0.5, compensated=True)), (ema(0.5, compensated=True), ema(0.5))):
        with pytest.raises(UsageError, match="the state of another averager"):
            one.check(other.init({"w": jnp.zeros(2)}))


def test_beside_others_it_has_the_digits_of_float64():
    averager = several(plain=lawa(1, 1), long=ema(0.9999, compensated=True))
    states = averager.init({"w": jnp.zeros(3)})
    for step in range(1, 4):
        states = averager.update(states, {"w": jnp.full(3, 1 / step)}, step)
    held = [np.float64(np.float32(1 / step)) for step in (1, 2, 3)]
    expected = held[0]
    for value in held[1:]:
        expected += 1e-4 * (value - expected)
    whole = np.asarray(states["long"].ema["w"], np.float64) + np.asarray(states["long"].compensation["w"])
    np.testing.assert_allclose(whole, expected, rtol=1e-11)


@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize(
    "through", [lambda tree: tree, lambda tree: jax.tree.map(jnp.asarray, tree)], ids=["numpy", "jax"]
)
def test_all_digits_go_to_pytorch_and_back(wide, through):
    """Also where `translate` cuts what it is given to float32, as JAX does."""
    kinds = (torch.float64, torch.complex128) if wide else (torch.float32, torch.complex64)
    model = torch.nn.ParameterDict({"w": torch.zeros(4, dtype=kinds[0]), "c": torch.zeros(3, dtype=kinds[1])})
    theirs = EMA(model, decay=0.9999, dtype=torch.float64)
    rng = np.random.default_rng(0)
    with double() if wide else nullcontext():
        averager = ema(0.9999, compensated=True)
        weights = lambda: {name: jnp.asarray(tensor.detach().numpy()) for name, tensor in model.items()}  # noqa: E731
        for step in range(1, 50):
            for tensor in model.values():
                tensor.data += torch.from_numpy(rng.normal(size=tensor.shape))
            theirs.update(step)
        held = convert.from_torch(theirs.state_dict())
        assert {name: value.dtype for name, value in held.values[0].items()} == {"w": np.float64, "c": np.complex128}
        state = convert.to_jax(held, averager, weights(), through)
        back = convert.from_jax(averager, state, weights(), through)
        for name, value in held.values[0].items():
            cut = np.float64 if wide else np.float32
            assert state.ema[name].real.dtype == cut
            assert (np.asarray(state.compensation[name]) != 0).any() == (not wide)
            np.testing.assert_allclose(back.values[0][name], value, rtol=1e-14)
        again = EMA(model, decay=0.9999, dtype=torch.float64)
        again.load_state_dict(convert.to_torch(back))
        vectors = [average.state_dict()["tracks"][0]["vectors"][0] for average in (theirs, again)]
        np.testing.assert_allclose(*[vector.numpy() for vector in vectors], rtol=1e-14)
        # An averager of fewer digits takes what it can hold, and one of more what there is.
        plain = convert.to_jax(held, ema(0.9999), weights(), through)
        np.testing.assert_array_equal(plain.ema["w"], state.ema["w"])
        more = convert.to_jax(convert.from_jax(ema(0.9999), plain, weights(), through), averager, weights(), through)
        np.testing.assert_array_equal(more.ema["w"], state.ema["w"])
        assert not np.asarray(more.compensation["w"]).any()
