"""Counts of updates in JAX: that begin anew, end beyond int32, go on with other settings; and update 0."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.weight_averaging.jax.test_jax_agreement import double
from tests.weight_averaging.jax.test_jax_situations import ALL, MAKERS, constant, fed, shown
from weight_averaging.averages import Weighted
from weight_averaging.errors import UsageError
from weight_averaging.jax import averaging, ema, host_lawa, lawa
from weight_averaging.torch import LAWA


@pytest.mark.parametrize("averager", ALL.values(), ids=ALL)
@pytest.mark.parametrize("step", [2**31, np.int64(2**31 + 64), np.uint32(2**31 + 64), jnp.uint32(2**31 + 64)])
def test_a_count_beyond_int32_is_refused(averager, step):
    with pytest.raises(UsageError, match=r"step 21474\d+ is beyond 2\^31 - 1: count optimizer updates"):
        averager.update(averager.init(constant(0.0)), constant(7.0), step)


@pytest.mark.parametrize("name", ["lawa", "ema"])
def test_under_jit_a_count_beyond_int32_is_seen_in_the_state(name):
    averager = ALL[name]
    update = jax.jit(averager.update)
    state = fed(averager, [7.0])
    wrapped = jnp.int32(2**31 - 2**22) + jnp.int32(2**22)  # tokens as the count
    for step in (jnp.uint32(2**31 + 64), jnp.uint32(2**32 - 1), wrapped):
        state = update(state, constant(8.0), step)
    assert (int(state.count), int(state.refused), int(state.step)) == (1, 3, 1)
    with double():
        state = update(state, constant(8.0), np.int64(2**40))
    assert (int(state.count), int(state.refused)) == (1, 4)


@pytest.mark.parametrize("averager", ALL.values(), ids=ALL)
@pytest.mark.parametrize("as_array", [False, True])
def test_a_count_that_begins_anew_leaves_signs(averager, as_array, caplog):
    kept = state = fed(averager, [1.0] * 7)
    last = int(state.step)
    with caplog.at_level(logging.WARNING, "weight_averaging"):
        for step in (0, 1, 2, last):  # 0: no update yet; the last one: told twice
            state = averager.update(state, constant(9.0), jnp.int32(step) if as_array else step)
    assert (int(state.count), int(state.refused) - int(kept.refused), int(state.step)) == (7, 2, last)
    state = averager.update(state, constant(9.0), last + 1)
    assert int(state.count) == 8


@pytest.mark.parametrize(("make", "last"), [(lawa, 123), (host_lawa, 124)], ids=MAKERS)
def test_a_count_that_begins_anew_is_told_once(make, last, caplog):
    averager = make(5, 2)
    state = fed(averager, [1.0] * last)
    with caplog.at_level(logging.WARNING, "weight_averaging"):
        fed(averager, [9.0] * 50, state)
    (message,) = caplog.messages
    assert f"comes before update {last}, the last one seen" in message


def continued(make, before, after, window, start, steps, refused):
    """What a window of interval `after` holds that goes on from one of `before`, as steps after each update."""
    averager, other = make(before, window), make(after, window, start)
    state = fed(averager, [float(step) for step in range(1, steps + 1)])
    held = []
    for step in range(steps + 1, 2 * steps + 1):
        value = np.nan if step in refused else float(step)
        state = other.update(state, constant(value), step)
        held.append(other.snapshot_steps(state) if other.ready(state) else [])
    return held


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize(("before", "after", "start"), [(10, 3, 1), (10, 5, 1), (5, 10, 1), (6, 4, 1), (5, 5, 41)])
def test_a_window_that_goes_on_with_other_settings_is_never_a_mixture(make, before, after, start):
    for window in (1, 2, 3, 4):
        for step, held in enumerate(continued(make, before, after, window, start, 40, set()), start=41):
            if step < 41 + after or not held:  # the first snapshot may not have been due
                continue
            assert np.diff(held).tolist() == [after] * (window - 1), (step, held)
            assert all(step % after == 0 for step in held)


@settings(max_examples=20, deadline=None)
@example("lawa", 1, {16, 18, 20})  # what is left is as far apart as of interval 2
@example("host_lawa", 1, {17, 19, 21, 24})
@given(st.sampled_from(list(MAKERS)), st.integers(1, 4), st.sets(st.integers(13, 24), max_size=4))
def test_refused_snapshots_do_not_let_a_window_begin_anew(make, interval, refused):
    held = continued(MAKERS[make], interval, interval, 4, 1, 12, refused)
    taken = [step for step in range(1, 25) if step % interval == 0 and step not in refused]
    for step, steps in enumerate(held, start=13):
        expected = [one for one in taken if one <= step][-4:]
        assert steps == (expected if len(expected) == 4 else []), step


def test_a_restored_state_is_checked_against_the_settings():
    for make in MAKERS.values():
        averager = make(10, 3)
        state = fed(averager, [1.0] * 40)
        averager.check(state)
        saved = dict(averager.settings)
        averager.check(state, saved)
        with pytest.raises(UsageError, match="the state has interval=10, and the averager interval=5"):
            make(5, 3).check(state, saved)
        with pytest.raises(UsageError, match="the state has the snapshot of update 20, and the averager interval=15"):
            make(15, 3).check(state)
        with pytest.raises(UsageError, match="and the averager interval=10 and start=25"):
            make(10, 3, 25).check(state)
    average = averaging(Weighted(weights=(0.25, 0.75), interval=1))
    as_json = {**dict(average.settings), "weights": [0.25, 0.75]}
    average.check(average.init(constant(0.0)), as_json)
    state = fed(ema(0.5), [1.0] * 3)
    with pytest.raises(UsageError, match=r"the state has decay=0.5, and the averager decay=0.9"):
        ema(0.9).check(state, dict(ema(0.5).settings))
    with pytest.raises(UsageError, match="the snapshot of update 3, and the averager interval=2"):
        ema(0.5, 2).check(state)


@settings(max_examples=20, deadline=None)
@example("lawa", 1, 3, False)
@given(st.sampled_from(list(MAKERS)), st.integers(1, 4), st.integers(1, 5), st.booleans())
def test_the_initial_weights_are_a_snapshot_like_the_others(name, interval, window, refused):
    """Update 0, with `start=0`; PyTorch's window holds the same."""
    averager = MAKERS[name](interval, window, 0, allow_partial=True)
    model = torch.nn.Linear(1, 1, bias=False)
    theirs = LAWA(model, interval=interval, window=window, start=0, allow_partial=True)
    state = averager.init(constant(0.0))
    for step in range(3 * interval * window):
        value = np.nan if refused and step == interval else 1.0 + step
        state = averager.update(state, constant(value), step)
        torch.nn.init.constant_(model.weight, value)
        theirs.update(step)
        assert averager.snapshot_steps(state) == theirs.snapshot_steps, step
        averager.check(state, dict(averager.settings))
        with theirs.averaged():
            assert shown(averager, state) == model.weight.item()


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_window_that_goes_on_without_the_initial_weights_begins_anew(make):
    with_them, without = make(2, 3, 0, allow_partial=True), make(2, 3, 1, allow_partial=True)
    state = with_them.init(constant(0.0))
    for step in (0, 1, 2):
        state = with_them.update(state, constant(float(step)), step)
    with pytest.raises(UsageError, match=r"the state has the snapshot of update 0, and the averager .* start=1"):
        without.check(state)
    assert with_them.snapshot_steps(with_them.update(state, constant(4.0), 4)) == [0, 2, 4]
    assert without.snapshot_steps(without.update(state, constant(4.0), 4)) == [4]
    assert shown(without, without.update(state, constant(4.0), 4)) == 4.0
