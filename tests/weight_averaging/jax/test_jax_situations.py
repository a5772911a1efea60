"""Situations around an average in JAX: what others met, each with the value that is right."""

import dataclasses
import logging
import pickle
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support import reference
from tests.weight_averaging.jax.test_jax_agreement import double
from weight_averaging.averages import Weighted
from weight_averaging.errors import UsageError
from weight_averaging.jax import averaging, ema, host_lawa, lawa
from weight_averaging.jax.device_averager import _collect, _collect_in_place

MAKERS = {"lawa": lawa, "host_lawa": host_lawa}
ALL = {
    "lawa": lawa(1, 3, allow_partial=True),
    "host_lawa": host_lawa(1, 3, allow_partial=True),
    "ema": ema(0.5),
    "warmup": ema(0.9, warmup=True),
    "horizon": ema(share=0.5),
    "weighted": averaging(Weighted(weights=(0.25, 0.75), interval=1)),
}


def constant(value, dtype=jnp.float32):
    return {"w": jnp.full(2, value, dtype)}


def fed(averager, values, state=None, first=1, every=1):
    """The state after updates `first`, `first + every`, ... to weights of these values."""
    state = averager.init(constant(0.0)) if state is None else state
    for number, value in enumerate(values):
        state = averager.update(state, constant(value), first + every * number)
    return state


def shown(averager, state):
    return float(averager.average(state, constant(-1.0))["w"][0])


# Counters


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


# What the parameters are


@pytest.mark.parametrize("averager", ALL.values(), ids=ALL)
def test_a_leaf_that_becomes_floating_point_is_refused(averager):
    tree = lambda leaf: {"w": jnp.ones(2), "t": leaf}  # noqa: E731
    state = averager.init(tree(jnp.int32(4)))
    for step in (1, 2):
        state = averager.update(state, tree(jnp.int32(4)), step)
    for call in (partial(averager.update, step=3), averager.average):
        with pytest.raises(
            ValueError, match=r"^\['t'\] was not floating-point when the averaging state was made: make"
        ):
            call(state, tree(jnp.float32(4)))
    state = averager.init(tree(jnp.ones(2)))
    with pytest.raises(ValueError, match=r"^\['t'\] is float32 in the averaging state and int32 now: make a new state"):
        averager.update(state, tree(jnp.ones(2, jnp.int32)), 1)


@pytest.mark.parametrize("name", ["lawa", "ema"])
def test_a_state_of_0_2_0_goes_on(name):
    """It has float32[] in the place of what is not averaged, and float32 for weights in float64."""
    averager = ALL[name]
    with double():
        params = lambda value: {"w": jnp.full(2, value, jnp.float64), "seen": jnp.int32(3)}  # noqa: E731
        state = averager.init(params(0.0))
        old = state._replace(
            **{state._fields[0]: {"w": state[0]["w"].astype(jnp.float32), "seen": jnp.zeros((), jnp.float32)}}
        )
        kinds = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), old)
        for step in (1, 2):
            old = jax.jit(averager.update)(old, params(step / 3), step)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), old) == kinds
        average = averager.average(old, params(0.0))
        assert average["w"].dtype == jnp.float64
        assert float(average["w"][0]) == float(np.float32(0.5))
        assert average["seen"] == 3


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(["lawa", "host_lawa", "ema"]), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_float64_is_averaged_in_float64(name, steps, seed):
    averager = ALL[name]
    values = np.random.default_rng(seed).normal(size=(steps, 5)) * 1e39
    with double():
        state = averager.init({"w": jnp.zeros(5, jnp.float64), "v": jnp.zeros(5), "c": jnp.zeros(5, jnp.complex128)})
        for step, value in enumerate(values, start=1):
            params = {"w": jnp.asarray(value), "v": jnp.float32(value / 1e39), "c": jnp.asarray(value * 1j)}
            state = averager.update(state, params, step)
        assert int(state.count) == steps
        average = averager.average(state, params)
    expected = reference.ema(list(values), 0.5) if name == "ema" else values[-3:].mean(0)
    np.testing.assert_allclose(average["w"], expected, rtol=1e-14, atol=1e25)
    np.testing.assert_allclose(average["c"].imag, expected, rtol=1e-14, atol=1e25)
    assert average["v"].dtype == jnp.float32


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Net:
    w: jax.Array
    rate: float = dataclasses.field(default=0.1, metadata={"static": True})


@pytest.mark.parametrize("averager", ALL.values(), ids=ALL)
def test_what_is_no_tree_of_arrays_or_another_one_is_told_in_one_line(averager):
    for leaf, kind in ((jax.nn.relu, "custom_jvp"), ("net", "str")):
        with pytest.raises(TypeError, match=rf"^\['name'\] is no array but {kind}: .*eqx.filter.*is_inexact_array\)$"):
            averager.init({"w": jnp.ones(2), "name": leaf})
    state = averager.init(Net(jnp.ones(2)))
    with pytest.raises(
        ValueError, match=r"^what Net holds beside arrays is \(0.1,\) in the .*state and now \(0.2,\): m"
    ):
        averager.update(state, Net(jnp.ones(2), 0.2), 1)
    state = averager.init([{"w": jnp.ones(2)}])
    with pytest.raises(ValueError, match=r"^a container is list in the averaging state and tuple in the parameters: m"):
        averager.update(state, ({"w": jnp.ones(2)},), 1)


@pytest.mark.parametrize("averager", ALL.values(), ids=ALL)
def test_what_is_no_state_is_told_in_one_line(averager):
    state, params = averager.init(constant(0.0)), constant(1.0)
    kind = type(state).__name__
    other = ALL["ema"].init(params) if kind != "EMAState" else ALL["lawa"].init(params)
    for given_, message in (
        (state._asdict(), "one that was restored without its types: give init.params. as the target"),
        (params, r"not one: the state comes first, update\(state, params, step\)"),
        (other, "the state of another averager: begin with a new one"),
    ):
        for call in (partial(averager.update, step=1), averager.average):
            with pytest.raises(UsageError, match=rf"^the state is to be a {kind}, and the \w+ given is {message}"):
                call(given_, params if given_ is not params else state)


def test_weights_and_states_in_other_memory_are_told():
    kinds = [memory.kind for memory in jax.devices()[0].addressable_memories()]
    if jax.devices()[0].default_memory().kind == "pinned_host" or "pinned_host" not in kinds:
        pytest.skip("this release of JAX has no such memory on this device")
    host = jax.sharding.SingleDeviceSharding(jax.devices()[0], memory_kind="pinned_host")
    there = jax.device_put(constant(1.0), host)
    for averager in ALL.values():
        state = averager.init(constant(0.0))
        for call in (averager.init, partial(averager.update, state, step=1), partial(averager.average, state)):
            with pytest.raises(
                UsageError, match=r"^\['w'\] is in pinned_host memory: jax.device_put it onto the device"
            ):
                call(there)
    state = ema(0.5).init(constant(0.0))
    with pytest.raises(UsageError, match=r"^\['w'\] of the averaging state is in pinned_host memory"):
        ema(0.5).update(state._replace(ema=jax.device_put(state.ema, host)), constant(1.0), 1)


@pytest.mark.parametrize("averager", ALL.values(), ids=ALL)
def test_under_strict_promotion_averages_are_the_same(averager):
    plain = shown(averager, fed(averager, [1.0, 2.0, 4.0, 8.0]))
    jax.clear_caches()
    with jax.numpy_dtype_promotion("strict"):
        assert shown(averager, fed(averager, [1.0, 2.0, 4.0, 8.0])) == plain


# Gradients, donation, identity


@pytest.mark.parametrize("name", ["lawa", "ema", "horizon"])
def test_no_gradient_flows_through_an_average(name):
    averager = ALL[name]
    slope = jax.grad(lambda params, state: jnp.sum(averager.average(state, params)["w"] ** 2))
    for state in (averager.init(constant(1.0)), fed(averager, [1.0] * 3)):
        assert slope(constant(1.0), state)["w"].tolist() == [0.0, 0.0]


def test_donated_states_are_gone_and_others_stay():
    averager = lawa(1, 2)
    kept = averager.init(constant(0.0))
    state = averager.update(kept, constant(1.0), 1)
    assert not kept.snapshots["w"].is_deleted()
    after = averager.update(state, constant(2.0), 2, donate=True)
    assert state.snapshots["w"].is_deleted()
    assert shown(averager, after) == 1.5
    # Where nothing is due outside jit, old and new have the same arrays, as the page says.
    averager = lawa(10, 2)
    kept = averager.init(constant(0.0))
    spare = jax.tree.map(jnp.copy, kept)
    state = averager.update(kept, constant(1.0), 1)
    jax.jit(averager.update, donate_argnums=0)(state, constant(2.0), 2)
    with pytest.raises(RuntimeError, match="deleted"):
        averager.average(kept, constant(1.0))
    assert shown(averager, spare) == -1.0


def test_a_state_in_host_memory_can_be_donated():
    for window in (1, 3):
        state = host_lawa(1, window).init(constant(1.0))
        twice = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 2, state), donate_argnums=0)(state)
        assert len(twice.snapshots) == window


def test_averagers_of_the_same_average_are_one():
    for name, averager in ALL.items():
        again = pickle.loads(pickle.dumps(averager))
        assert again == averager, name
        assert hash(again) == hash(averager), name
        assert again.settings == averager.settings
        assert shown(again, fed(again, [1.0, 3.0])) == shown(averager, fed(averager, [1.0, 3.0]))
    assert len({ema(0.5), ema(0.5), ema(0.6), ema(0.5, 2), ema(0.5, check_finite=False), lawa(1, 2)}) == 5
    assert lawa(1, 2) != host_lawa(1, 2)
    lists = averaging(Weighted(weights=[0.25, 0.75], interval=1))
    assert hash(lists) == hash(averaging(Weighted(weights=[0.25, 0.75], interval=1)))
    assert shown(lists, fed(lists, [1.0, 2.0, 3.0])) == 2.75
    traces = 0

    @partial(jax.jit, static_argnums=0)
    def update(averager, state, params):
        nonlocal traces
        traces += 1
        return averager.update(state, params, 1)

    for _ in range(3):
        update(ema(0.5), ema(0.5).init(constant(0.0)), constant(1.0))
    assert traces == 1


# Costs


def peak(compiled) -> float:
    memory = compiled.memory_analysis()
    taken = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return float(taken + memory.temp_size_in_bytes)


def test_an_update_outside_jit_holds_one_window_where_it_may():
    params = {"w": jnp.ones(100_000)}
    averager = lawa(1, 20)
    state = averager.init(params)
    copies = [
        peak(collect.lower(averager, state, params, jnp.int32(1)).compile()) / params["w"].nbytes
        for collect in (_collect, _collect_in_place)
    ]
    np.testing.assert_allclose(copies, [41, 21], atol=0.1)


@pytest.mark.parametrize("step", [7, np.int64(7), np.asarray(7), jnp.int32(7)], ids=lambda step: type(step).__name__)
def test_an_update_outside_jit_with_nothing_due_copies_nothing(step):
    for averager in (lawa(64, 20), host_lawa(64, 20), ema(0.5, 64)):
        state = averager.init(constant(0.0))
        jax.block_until_ready(step)
        after = averager.update(state, constant(1.0), step)
        pairs = zip(jax.tree.leaves(state[0]), jax.tree.leaves(after[0]), strict=True)
        assert all(mine is own for mine, own in pairs)
        assert int(after.step) == 7


def test_a_step_that_is_not_computed_yet_is_not_waited_for(monkeypatch):
    from weight_averaging.jax import checks

    monkeypatch.setattr(checks, "at_hand", lambda value: False)
    step = jnp.int32(64)
    assert checks.known(step) is step
    assert checks.known(np.int64(64)) == 64
    averager = lawa(64, 1)
    assert int(averager.update(averager.init(constant(0.0)), constant(1.0), step).count) == 1


@pytest.mark.parametrize("make", [partial(lawa, 64, 3), partial(ema, 0.5, 64)], ids=["lawa", "ema"])
def test_under_vmap_an_update_with_nothing_due_is_a_branch_of_its_own(make):
    averager = make()
    two = {"w": jnp.ones((2, 1237))}
    state = jax.vmap(averager.init)(two)
    update = jax.jit(jax.vmap(averager.update, in_axes=(0, 0, None)), donate_argnums=0)
    text = update.lower(state, two, jnp.int32(1)).compile().as_text()
    entry = re.search(r"^ENTRY .*?^}", text, re.DOTALL | re.MULTILINE)[0]
    assert "conditional(" in entry
    assert not re.search(r"= f32\[[^ ]*1237[^ ]* (copy|fusion|select)(?:-start)?\(", entry), entry


def test_the_mean_of_a_window_compiles_from_few_operations_a_leaf():
    """Compiling takes longer with each operation, at hundreds of leaves."""

    def operations(leaves):
        params = {f"l{number}": jnp.ones((8, 8)) for number in range(leaves)}
        averager = lawa(1, 20)
        text = jax.jit(averager.average).lower(averager.init(params), params).as_text()
        return len(re.findall(r"= (?:stablehlo(?!.constant)|call|func)", text))

    # 20 snapshots are cut out and added up; what else there is is for the quotient, and for the raw weights.
    assert operations(12) - operations(2) <= 10 * (2 * 20 + 10)
