"""Averages in JAX that go on from others: what PyTorch does under settings="new"."""

import copy
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weight_averaging import Averages
from weight_averaging.averages import EMA, FollowsRate, Growing, Ramp
from weight_averaging.errors import UsageError
from weight_averaging.jax import averaging, ema, ema_growing, host_lawa, lawa

KINDS = {
    "ema": lambda interval: EMA(decay=0.8, interval=interval),
    "growing": lambda interval: Growing(share=0.3, interval=interval),
    "ramp": lambda interval: Ramp(decay=0.9, length=30, interval=interval),
    "follows": lambda interval: FollowsRate(share=0.3, interval=interval),
    "follows a known top": lambda interval: FollowsRate(share=0.3, top_rate=0.1, interval=interval),
}
names, intervals = st.sampled_from(list(KINDS)), st.integers(1, 4)
pytestmark = pytest.mark.filterwarnings("ignore")


@given(names, names, intervals, intervals, st.tuples(st.booleans(), st.booleans()), st.integers(0, 30), st.booleans())
@settings(max_examples=25, deadline=None)
def test_whatever_it_goes_on_from_it_is_what_pytorch_makes_of_it(before, after, old, new, digits, until, saved):
    first, then = KINDS[before](old), KINDS[after](new)
    model = torch.nn.Linear(3, 1, bias=False)
    theirs = Averages(model, [first])
    averager = averaging(first, compensated=digits[0])
    state = averager.init({"w": jnp.zeros((1, 3))})
    rng = np.random.default_rng(until)
    for step in range(1, until + 31):
        if step == until + 1:
            went_on = Averages(model, [then])
            went_on.load_state_dict(copy.deepcopy(theirs.state_dict()), settings="new")
            theirs, old_averager = went_on, averager
            averager = averaging(then, compensated=digits[1])
            state = averager.go_on(state, dict(old_averager.settings))
            if saved:
                like = averager.init({"w": jnp.zeros((1, 3))})
                assert jax.tree.structure(state) == jax.tree.structure(like)
                for mine, leaf in zip(jax.tree.leaves(state), jax.tree.leaves(like), strict=True):
                    assert (mine.shape, mine.dtype) == (leaf.shape, leaf.dtype)
                state = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), state)
                averager.check(state, dict(averager.settings))
        rate, value = 0.1 * (1 - step / 80), rng.normal(size=(1, 3)).astype(np.float32)
        model.weight.data.copy_(torch.from_numpy(value))
        theirs.update(step, learning_rate=rate)
        state = averager.update(state, {"w": jnp.asarray(value)}, step, learning_rate=rate)
    shown = np.asarray(averager.average(state, {"w": jnp.zeros((1, 3))})["w"])
    np.testing.assert_allclose(shown, theirs.average_state_dict()["weight"].numpy(), rtol=2e-5, atol=2e-6)
    assert int(state.count) == theirs.state_dict()["tracks"][0]["count"]


def fed(averager, count):
    state = averager.init({"w": jnp.zeros(2), "seen": jnp.int32(3)})
    for step in range(1, count + 1):
        state = averager.update(state, {"w": jnp.full(2, float(step)), "seen": jnp.int32(3)}, step, learning_rate=0.1)
    return state


@pytest.mark.parametrize("compensated", [False, True])
@pytest.mark.parametrize(("top", "count", "told"), [(None, 3, True), (0.1, 3, False), (None, 0, False)])
def test_it_says_that_a_growing_average_knew_no_rates(compensated, top, count, told, caplog):
    growing, follows = ema_growing(), averaging(FollowsRate(top_rate=top, interval=1), compensated=compensated)
    with caplog.at_level(logging.WARNING, "weight_averaging"):
        state = follows.go_on(fed(growing, count), dict(growing.settings))
        assert ("the saved average knows no learning rates: followsrate interval=1 takes" in caplog.text) == told
        caplog.clear()
        again = follows.go_on(state, dict(follows.settings))
        assert not caplog.text
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
        assert np.array_equal(one, other)
    assert state.ema["seen"].dtype == jnp.bool_


def test_it_says_what_cannot_go_on():
    growing, follows = ema_growing(), averaging(FollowsRate(interval=1))
    state, params = fed(growing, 3), {"w": jnp.zeros(2), "seen": jnp.int32(3)}
    with pytest.raises(UsageError, match=r"FollowsRateState, and the EMAState given .* on purpose go_on\(state, set"):
        follows.update(state, params, 4, learning_rate=0.1)
    with pytest.raises(UsageError, match=r"on purpose go_on\(state, settings\)$"):
        ema_growing(0.2).check(state, dict(growing.settings))
    with pytest.raises(UsageError, match=r"interval=1, and the averager interval=2: .* init\(params\)$"):
        lawa(2, 2).check(fed(lawa(1, 2), 3), dict(lawa(1, 2).settings))
    for window in (lawa(1, 2), host_lawa(1, 2)):
        with pytest.raises(UsageError, match="lawa window=2 interval=1 goes on from no other average"):
            window.go_on(state, dict(growing.settings))
        with pytest.raises(UsageError, match=r"to be a EMAState, and the \w+ given .*init\(params\), or take"):
            ema(0.5).go_on(fed(window, 3), dict(window.settings))
    with pytest.raises(ValueError, match="interval in settings must be a whole number >= 1, not 0"):
        growing.go_on(state, {})
