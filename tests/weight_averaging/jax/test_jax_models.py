"""Averages within optax chains and beside flax nnx models, several at once, against those of a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.weight_averaging.jax.test_jax_averagers import assert_same
from weight_averaging.errors import UsageError
from weight_averaging.jax import as_gradient_transformation, averaging_state, ema, host_lawa, lawa, several
from weight_averaging.jax.nnx import ModelAverager

AVERAGERS = {
    "lawa": lawa(2, 3),
    "partial": lawa(3, 2, allow_partial=True),
    "ema": ema(0.5),
    "horizon": ema(share=0.5),
}


def gradients_of(step):
    rng = np.random.default_rng(step)
    return {"w": jnp.float32(rng.normal(size=(3, 2))), "b": jnp.bfloat16(rng.normal(size=2))}


def in_a_loop(averager, updates):
    """Parameters and state of a loop that calls the averager itself."""
    optimizer, params = optax.adam(0.1), gradients_of(0)
    state, averaging = optimizer.init(params), averager.init(params)
    for step in range(1, updates + 1):
        changes, state = optimizer.update(gradients_of(step), state, params)
        params = optax.apply_updates(params, changes)
        averaging = averager.update(averaging, params, step)
    return params, averaging


@pytest.mark.parametrize("name", AVERAGERS)
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_in_a_chain_an_average_is_that_of_a_loop(name, micro_batches):
    averager = AVERAGERS[name]
    optimizer = optax.chain(optax.adam(0.1), as_gradient_transformation(averager))
    if micro_batches > 1:
        optimizer = optax.MultiSteps(optimizer, micro_batches)
    params = gradients_of(0)
    state = optimizer.init(params)

    @jax.jit
    def train_step(params, state, gradients):
        changes, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, changes), state

    for step in range(1, 9):
        for _ in range(micro_batches):
            params, state = train_step(params, state, gradients_of(step))
    expected_params, expected = in_a_loop(averager, 8)
    found = averaging_state(state)
    assert [int(n) for n in (found.step, found.count)] == [int(n) for n in (expected.step, expected.count)]
    for mine, theirs in (
        (params, expected_params),
        (averager.average(found, params), averager.average(expected, params)),
    ):
        for leaf, other in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(np.float32(leaf), np.float32(other), rtol=2e-2 if leaf.dtype != "f4" else 1e-5)


def test_a_chain_without_parameters_or_with_two_averages_is_told():
    averager = ema(0.5)
    alone = as_gradient_transformation(averager)
    params = gradients_of(0)
    with pytest.raises(UsageError, match=r"give them, optimizer.update\(gradients, state, params\)"):
        alone.update(params, alone.init(params))
    with pytest.raises(UsageError, match="has 0 averages, not one"):
        averaging_state(optax.adam(0.1).init(params))
    with pytest.raises(UsageError, match="has 2 averages, not one"):
        averaging_state(optax.chain(alone, alone).init(params))


def test_several_averages_are_each_what_it_is_alone():
    all_of_them = several(**AVERAGERS)
    update = jax.jit(all_of_them.update, donate_argnums=0)
    params, states = gradients_of(0), all_of_them.init(gradients_of(0))
    alone = {name: averager.init(params) for name, averager in AVERAGERS.items()}
    for step in range(1, 8):
        params = gradients_of(step)
        states = update(states, params, step)
        alone = {name: a.update(alone[name], params, step) for name, a in AVERAGERS.items()}
    assert_same(all_of_them.average(states, params), {n: a.average(alone[n], params) for n, a in AVERAGERS.items()})
    assert {n: bool(is_) for n, is_ in all_of_them.ready(states).items()} == dict.fromkeys(AVERAGERS, True)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.norm, self.out = nnx.BatchNorm(3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, inputs):
        return self.out(self.norm(inputs))


def everything(model):
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, (nnx.Param, nnx.BatchStat))))


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("name", [*AVERAGERS, "host"])
def test_a_model_averages_what_its_weights_were(name, jitted):
    averager = AVERAGERS.get(name) or host_lawa(2, 3)
    if name == "host" and jitted:
        pytest.skip("outside jit only")
    wrt = (nnx.Param, nnx.BatchStat)
    model = Net(nnx.Rngs(0))
    averaging = ModelAverager(model, averager, wrt)
    expected = averager.init(everything(model))

    def train_step(model, averaging, step):
        grads = nnx.grad(lambda model: jnp.mean(model(jnp.arange(12.0).reshape(4, 3)) ** 2))(model)
        state = nnx.state(model, nnx.Param)
        nnx.update(model, jax.tree.map(lambda leaf, slope: leaf - 0.1 * slope, state, grads))
        averaging.update(model, step)

    train_step = nnx.jit(train_step) if jitted else train_step
    for step in range(1, 8):
        train_step(model, averaging, jnp.int32(step) if jitted else step)
        expected = averager.update(expected, everything(model), step)
    raw = everything(model)
    assert bool(averaging.ready())
    average = averager.average(expected, raw)
    assert_same(averaging.average(model), average)
    with averaging.averaged(model) as evaluated:
        assert evaluated is model
        assert_same(everything(model), average)
        model.eval()
        nnx.jit(lambda model, inputs: model(inputs))(model, jnp.ones((4, 3)))
    assert_same(everything(model), raw)

    def spoil(error):
        with averaging.averaged(model):
            model.out.kernel = nnx.Param(jnp.zeros((3, 2)))
            if error is not None:
                raise error

    for error, kind, message in (
        (ArithmeticError("mine"), ArithmeticError, "mine"),
        (None, UsageError, r"\['out'\]\['kernel'\] was written to while the average was in the model"),
    ):
        with pytest.raises(kind, match=message):
            spoil(error)
        assert_same(everything(model), raw)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.sampled_from(["update", "swap", "fail"]), max_size=12))
def test_whatever_the_order_raw_weights_are_those_of_training(actions):
    model, averager = nnx.Linear(1, 1, use_bias=False, rngs=nnx.Rngs(0)), ema(0.5)
    averaging = ModelAverager(model, averager)
    model.kernel = nnx.Param(jnp.zeros((1, 1)))
    step, average = 0, 0.0
    for action in actions:
        if action == "update":
            step += 1
            average = float(step) if step == 1 else (average + step) / 2
            model.kernel = nnx.Param(jnp.full((1, 1), float(step)))
            averaging.update(model, step)
            continue
        try:
            with averaging.averaged(model):
                assert float(model.kernel[0, 0]) == average
                if action == "fail":
                    raise ZeroDivisionError
        except ZeroDivisionError:
            assert action == "fail"
        assert float(model.kernel[0, 0]) == step
