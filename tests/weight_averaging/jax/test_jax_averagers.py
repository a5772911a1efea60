"""LAWA and EMA in JAX: under jit with donation, in scan and vmap, on odd leaves, swapped, and misused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import reference
from weight_averaging.jax import ema, ema_for_run, lawa, lawa_for_run

AVERAGERS = {
    "lawa": lawa(2, 3),
    "partial": lawa(1, 4, start=3, allow_partial=True),
    "unchecked": lawa(1, 2, check_finite=False),
    "ema": ema(0.9),
    "warmup": ema(0.99, 2, warmup=True),
    "horizon": ema(share=0.5),
    "compensated": ema(0.9, 2, compensated=True),
}


@pytest.fixture(params=AVERAGERS)
def averager(request):
    return AVERAGERS[request.param]


def params_of(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "layer": {"w": jnp.float32(rng.normal(size=(3, 5))), "b": jnp.bfloat16(rng.normal(size=5))},
        "scale": jnp.float16(rng.normal()),
        "spectrum": jnp.asarray(rng.normal(size=2) + 1j * rng.normal(size=2), jnp.complex64),
        "seen": jnp.int32(seed),
        "mask": jnp.arange(3) % 2 == seed % 2,
        "key": jax.random.key(seed),
    }  # fmt: skip


def numbers(tree) -> dict:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    as_data = lambda leaf: jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf  # noqa: E731
    return {jax.tree_util.keystr(path): np.asarray(as_data(leaf)) for path, leaf in leaves}


def assert_same(tree, other) -> None:
    mine, theirs = numbers(tree), numbers(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert value.dtype == theirs[name].dtype, name
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def run(averager, steps: int, update=None):
    state = averager.init(params_of(0))
    for step in range(1, steps + 1):
        state = (update or averager.update)(state, params_of(step), step)
    return state


def test_averages_are_those_of_the_references():
    steps = range(1, 12)
    for averager, due, of in (
        (lawa(2, 3, start=3), [s for s in steps if s >= 3 and s % 2 == 0], lambda x: reference.lawa(x, 3)),
        (ema(0.9, 2), [s for s in steps if s % 2 == 0], lambda x: reference.ema(x, 0.9)),
    ):
        state = run(averager, steps[-1])
        average = averager.average(state, params_of(11))
        expected = of([np.asarray(params_of(step)["layer"]["w"]) for step in due])
        np.testing.assert_allclose(average["layer"]["w"], expected, rtol=1e-6, atol=1e-7)
        wide = of([np.asarray(params_of(step)["spectrum"]).view(np.float32) for step in due])
        np.testing.assert_allclose(np.asarray(average["spectrum"]).view(np.float32), wide, rtol=1e-6, atol=1e-7)
        for name in ("seen", "mask", "key"):
            assert_same(average[name], params_of(11)[name])


def test_until_it_is_ready_the_raw_weights_are_shown(averager):
    state = averager.init(params_of(0))
    for step in range(0, 12):
        if step:
            state = averager.update(state, params_of(step), step)
        shown = averager.average(state, params_of(step))
        assert bool(averager.ready(state)) == (int(state.count) >= _needed(averager))
        if not averager.ready(state):
            assert_same(shown, params_of(step))
    assert averager.ready(state)


def _needed(averager) -> int:
    given = dict(averager.settings)
    return 1 if given.get("allow_partial", given["averager"] == "EMA") else given["window"]


def test_all_of_it_is_the_same_under_jit_with_donated_memory(averager):
    plain = run(averager, 9)
    update = jax.jit(averager.update, donate_argnums=0)
    jitted = run(averager, 9, update)
    assert_same(plain, jitted)
    assert_same(jax.jit(averager.average)(jitted, params_of(9)), averager.average(plain, params_of(9)))


def test_a_state_never_changes_its_structure(averager):
    kinds = lambda state: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)  # noqa: E731
    initial = kinds(averager.init(params_of(0)))
    for steps in (1, 5, 12):
        assert kinds(run(averager, steps)) == initial
    shapes = jax.eval_shape(averager.init, params_of(0))
    assert kinds(shapes) == initial


def test_nothing_shares_memory_with_weights_that_are_donated(averager):
    """Trap 5 in JAX's form: a train step that donates the weights overwrites whatever has the same memory."""
    train_step = jax.jit(overwritten, donate_argnums=0)
    params, expected = params_of(0), params_of(0)
    state, undisturbed = averager.init(params), averager.init(expected)
    shown = []
    for step in range(1, 8):
        given, params = params, train_step(params)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given["layer"]))
        expected = overwritten(expected)
        state, undisturbed = averager.update(state, params, step), averager.update(undisturbed, expected, step)
        for average in (averager.average, jax.jit(averager.average)):
            shown.append((average(state, params), averager.average(undisturbed, expected)))
    train_step(params)
    assert_same(state, undisturbed)
    for mine, other in shown:
        assert_same(mine, other)


@pytest.mark.parametrize("make", [lawa, ema], ids=["lawa", "ema"])
def test_a_train_step_has_no_copy_for_the_sake_of_the_average(make):
    """In donated memory; read in the compiled step, beside that of a step without an average."""
    averager = make(interval=64, window=3) if make is lawa else make(decay=0.9, interval=64)
    inputs = jnp.ones((2, 1237))

    def train_step(run, step):
        params, averaging = run
        loss = lambda params: jnp.sum(jnp.tanh(inputs @ params["w"]) ** 2)  # noqa: E731
        params = jax.tree.map(lambda leaf, slope: leaf - 0.1 * slope, params, jax.grad(loss)(params))
        return params, averager.update(averaging, params, step) if averaging else None

    params = {"w": jnp.ones((1237, 3))}
    copies = []
    for averaging in (None, averager.init(params)):
        compiled = jax.jit(train_step, donate_argnums=0).lower((params, averaging), jnp.int32(1)).compile()
        copies.append(len(re.findall(r"= f32\[[^ ]*1237[^ ]* copy(?:-start)?\(", compiled.as_text())))
    assert copies[0] == copies[1]
    not_donated = jax.jit(train_step).lower((params, averager.init(params)), jnp.int32(1)).compile().as_text()
    assert re.search(r"= f32\[[^ ]*1237[^ ]* copy(?:-start)?\(", not_donated)  # the text does tell


def overwritten(params):
    """Other weights of the same kind."""
    return jax.tree.map(lambda leaf: leaf * 2 if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf, params)


@pytest.mark.parametrize("name", ["lawa", "partial", "warmup", "compensated"])
def test_it_runs_within_scan_and_vmap(name):
    averager = AVERAGERS[name]
    params = [params_of(step) for step in range(8)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)

    @jax.jit
    def scanned(state):
        def body(state, inputs):
            return averager.update(state, *inputs), None

        rest = jax.tree.map(lambda leaf: leaf[1:], stacked)
        return jax.lax.scan(body, state, (rest, jnp.arange(1, 8)))[0]

    expected = run(averager, 7)
    assert_same(scanned(averager.init(params[0])), expected)

    runs = np.array([3, 5])  # two runs at once, the second one ahead
    both = jax.jit(lambda at: jax.tree.map(lambda leaf: leaf[at], stacked))
    state = jax.jit(jax.vmap(averager.init))(both(np.array([0, 0])))
    update = jax.jit(jax.vmap(averager.update))
    for step in range(1, 6):
        state = update(state, both(np.array([step, step])), np.where(step <= runs, step, 0))
    averages = jax.jit(jax.vmap(averager.average))(state, both(runs))
    for number, steps in enumerate(runs):
        mine = jax.tree.map(lambda leaf, number=number: leaf[number], averages)
        assert_same(mine, averager.average(run(averager, steps), params_of(steps)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_and_counted(averager, bad):
    checked = averager is not AVERAGERS["unchecked"]
    state = run(averager, 5)
    spoilt = params_of(6)
    spoilt["layer"]["b"] = spoilt["layer"]["b"].at[-1].set(bad)
    after = jax.jit(averager.update)(state, spoilt, 6)
    assert int(after.refused) == checked
    if checked:
        assert_same(after._replace(refused=state.refused, step=state.step), state)
        assert averager.update(after, params_of(8), 8).count == state.count + 1
    # Where an average begins with them, nothing of them stays in it.
    if checked:
        state = averager.init(spoilt)
        for step in range(1, 9):
            state = averager.update(state, params_of(step), step)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(averager.average(state, params_of(8))["layer"]))


def test_a_step_that_was_seen_already_is_passed_over(averager):
    state = run(averager, 6)
    assert_same(averager.update(state, params_of(9), 6), state)
    assert_same(averager.update(state, params_of(9), 4), state._replace(refused=state.refused + 1))


def test_for_run_is_pytorchs_rule():
    assert dict(lawa_for_run(120_000, horizon=0.01).settings) == {
        "averager": "LAWA", "interval": 60, "window": 20, "start": 1, "allow_partial": False
    }  # fmt: skip
    short = dict(lawa_for_run(1_000, start=5).settings)
    assert (short["interval"], short["window"], short["start"]) == (2, 20, 5)
    given = dict(ema_for_run(1_000, horizon=0.01, warmup=True).settings)
    assert (given["interval"], given["decay"], given["warmup"]) == (1, 9 / 11, True)


def test_misuse_is_told_in_one_line():
    for call, error, message in (
        (lambda: lawa(0, 3), ValueError, "interval must be a whole number >= 1, not 0"),
        (lambda: lawa(1, 2.5), ValueError, "window must be a whole number >= 1, not 2.5"),
        (lambda: ema("0.9"), ValueError, "decay must be a number"),
        (lambda: ema(0.9, share=0.1), TypeError, "either a decay or a share"),
        (lambda: ema(), TypeError, "either a decay or a share"),
        (lambda: ema(0.9).init({"seen": jnp.int32(1)}), ValueError, "nothing to average"),
    ):
        with pytest.raises(error, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    state = AVERAGERS["lawa"].init(params_of(0))
    less = {name: leaf for name, leaf in params_of(0).items() if name != "scale"}
    longer = {**params_of(0), "scale": jnp.zeros(3)}
    for function in (AVERAGERS["lawa"].average, lambda state, params: AVERAGERS["lawa"].update(state, params, 1)):
        with pytest.raises(ValueError, match=r"\['scale'\] is in the averaging state and not in the parameters"):
            function(state, less)
        with pytest.raises(ValueError, match=r"\['scale'\] is \(3,\) in the averaging state and not \(3, 3\)"):
            function(state, longer)
        with pytest.raises(ValueError, match=r"\['more'\] is in the parameters and not in the averaging state"):
            function(state, {**params_of(0), "more": jnp.zeros(3)})
    for step in (1.0, True, jnp.ones(2, jnp.int32)):
        with pytest.raises(TypeError, match="a whole number"):
            AVERAGERS["ema"].update(AVERAGERS["ema"].init(params_of(0)), params_of(0), step)
