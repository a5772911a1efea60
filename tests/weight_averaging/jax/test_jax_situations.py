"""Situations around an average in JAX: what others met, each with the value that is right."""

import dataclasses
import pickle
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
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
    "compensated": ema(0.5, compensated=True),
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
