"""Windows of JAX in host memory: the same averages, where they go, and refusals before any training."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.weight_averaging.jax.test_jax_averagers import assert_same, overwritten, params_of
from weight_averaging import placement
from weight_averaging.jax import HostLAWAState, LAWAState, choose_lawa, host_lawa, host_window, lawa


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.booleans(), st.sets(st.integers(1, 12), max_size=4))
def test_a_window_in_host_memory_is_the_one_on_the_device(window, interval, start, allow_partial, bad):
    given = {"interval": interval, "window": window, "start": start, "allow_partial": allow_partial}
    here, there = lawa(**given), host_lawa(**given)
    assert here.settings == there.settings
    on_device, on_host = here.init(params_of(0)), there.init(params_of(0))
    for step in range(1, 13):
        params = params_of(step)
        if step in bad:
            params["scale"] = jnp.float16(np.nan)
        on_device, on_host = here.update(on_device, params, step), there.update(on_host, params, step)
        assert bool(here.ready(on_device)) == bool(there.ready(on_host))
        for counter in ("steps", "step", "count", "refused"):
            np.testing.assert_array_equal(getattr(on_device, counter), getattr(on_host, counter))
    assert_same(here.average(on_device, params), there.average(on_host, params))


def test_a_donated_weight_may_be_overwritten_while_its_copy_is_under_way():
    averager = host_lawa(1, 3, check_finite=False)
    train_step = jax.jit(lambda w: w + 1, donate_argnums=0)
    params = jnp.zeros(3_000_000)
    state = averager.init(params)
    for step in range(1, 8):
        params = train_step(params)
        state = averager.update(state, params, step)
        assert state.snapshots[(step - 1) % 3] is not params
    params = train_step(params)
    for number, snapshot in enumerate(state.snapshots):
        np.testing.assert_array_equal(snapshot, [7, 5, 6][number])
    average = averager.average(state, params)
    train_step(params)
    np.testing.assert_array_equal(average, 6)


def test_without_memory_of_that_kind_snapshots_are_numpy_arrays(monkeypatch):
    monkeypatch.setattr(host_window, "_host_kind", lambda device: None)
    averager, plain = host_lawa(1, 2), lawa(1, 2)
    params = params_of(0)
    state, expected = averager.init(params), plain.init(params)
    for step in range(1, 6):
        params = overwritten(params)
        state, expected = averager.update(state, params, step), plain.update(expected, params, step)
    assert {type(leaf) for leaf in jax.tree.leaves(state.snapshots)} == {np.ndarray}
    assert_same(averager.average(state, params), plain.average(expected, params))


class Accelerator:
    """What the choice asks of a device, with 80 GB free."""

    platform = "gpu"

    def __str__(self):
        return "cuda:0"

    def memory_stats(self):
        return {"bytes_limit": 90 * 10**9, "bytes_in_use": 10 * 10**9}

    def addressable_memories(self):
        return [type("Memory", (), {"kind": kind}) for kind in ("device", "pinned_host", "unpinned_host")]


@pytest.mark.parametrize(
    ("asked", "window", "kind", "where"),
    [
        ("auto", 1_900, LAWAState, "the memory of cuda:0"),
        ("auto", 2_100, HostLAWAState, "pinned host memory"),
        ("device", 19_000, LAWAState, "the memory of cuda:0"),
        ("host", 1, HostLAWAState, "pinned host memory"),
    ],
)
def test_auto_takes_the_device_for_a_small_share_of_it(asked, window, kind, where, monkeypatch, caplog):
    monkeypatch.setattr(host_window, "_device_of", lambda leaf: Accelerator())
    monkeypatch.setattr(placement, "free_host_bytes", lambda: 100 * 10**9)
    params = {"w": jnp.zeros((1000, 1000), jnp.bfloat16), "seen": jnp.int32(0)}  # 4 MB a snapshot
    with caplog.at_level(logging.INFO, "weight_averaging"):
        averager = choose_lawa(params, 1, window, placement=asked)
    monkeypatch.undo()
    assert f"a window of {window} snapshots of 1,000,000 weights is" in caplog.messages[0]
    assert caplog.messages[0].endswith(f"in {where}")
    small = {"w": jnp.zeros(1), "seen": jnp.int32(0)}
    assert isinstance(averager.init(small), kind)
    assert dict(averager.settings)["window"] == window


def test_what_does_not_fit_is_refused_before_any_training(monkeypatch):
    params = {"w": jnp.zeros((1000, 1000))}
    with pytest.raises(MemoryError, match=r"a window of 1000000 snapshots of 1,000,000 weights is 4 TB in host"):
        choose_lawa(params, 1, 1_000_000)
    with pytest.raises(ValueError, match="placement must be one of auto, device, host, not 'gpu'"):
        choose_lawa(params, 1, 2, placement="gpu")
    with pytest.raises(ValueError, match="window must be a whole number"):
        choose_lawa(params, 1, 0)
    monkeypatch.setattr(host_window, "_device_of", lambda leaf: Accelerator())
    with pytest.raises(MemoryError, match=r'on cuda:0, where 80 GB are free: try placement="host"'):
        choose_lawa(params, 1, 21_000, placement="device")


def test_leaves_may_be_numpys():
    averager, plain = host_lawa(1, 2), lawa(1, 2)
    params = {"w": np.zeros(3, np.float32), "seen": np.int32(0)}
    state, expected = averager.init(params), plain.init(params)
    for step in range(1, 4):
        params = {"w": np.full(3, step, np.float32), "seen": np.int32(step)}
        state, expected = averager.update(state, params, step), plain.update(expected, params, step)
    average = averager.average(state, params)
    assert average["w"].tolist() == [2.5] * 3
    assert_same(average, plain.average(expected, params))


def test_a_tree_without_a_weight_is_refused():
    with pytest.raises(ValueError, match="there is nothing to average: the tree has no floating-point leaf"):
        host_lawa(1, 2).init({"seen": jnp.int32(0)})


def test_it_is_told_that_it_goes_outside_jit():
    averager = host_lawa(1, 2)
    params = {"w": jnp.zeros(2)}
    state = averager.init(params)
    for function in (lambda s, p: averager.update(s, p, 1), averager.average):
        with pytest.raises(TypeError, match=r"in host memory cannot be part of jax\.jit: call it outside"):
            jax.jit(function)(state, params)
    with pytest.raises(TypeError, match=r"in host memory cannot be part of jax\.jit: call it outside"):
        jax.jit(averager.init)(params)
