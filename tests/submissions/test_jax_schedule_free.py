"""Schedule-Free AdamW in JAX: its equations, and that evaluations see its average and training never does."""

import importlib
import json
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from submissions.recipe.jax import Recipe, lawa, schedule_free_adamw, warmup_constant
from submissions.recipe.schedules import warmup_constant as factor
from tests.submissions.test_base_optimizers import matrix_and_gradients
from tests.support import reference
from tests.support.jax_runs import Regression, Run

pytestmark = pytest.mark.skipif(schedule_free_adamw.missing() is not None, reason="optax has no Schedule-Free")
SUBMISSION = importlib.import_module("submissions.jax.schedule_free_adamw.submission")
POINT = {"learning_rate": 1e-2, "one_minus_beta1": 0.1, "beta2": 0.95, "weight_decay": 0.5, "warmup_factor": 0.05}


@pytest.mark.parametrize("seed", range(3))
def test_it_follows_its_equations(seed):
    _, theta, gradients = matrix_and_gradients(seed)
    hyperparameters = SimpleNamespace(**POINT)
    optimizer = schedule_free_adamw.build(hyperparameters, 100)
    rates = [1e-2 * factor(step, 100, hyperparameters) for step in range(len(gradients))]
    params = {"w": jnp.asarray(theta)}
    state = optimizer.init(params)
    update = jax.jit(lambda g, state, params, rate: optimizer.update(g, state, params, learning_rate=rate))
    for gradient, rate in zip(gradients, rates, strict=True):
        updates, state = update({"w": jnp.asarray(gradient)}, state, params, rate)
        params = jax.tree.map(jnp.add, params, updates)
    y, x = reference.schedule_free_adamw(theta, gradients, rates, 0.9, 0.95, 0.5)
    np.testing.assert_allclose(params["w"], y, rtol=1e-5, atol=5e-6)
    np.testing.assert_allclose(schedule_free_adamw.average(state, params)["w"], x, rtol=1e-5, atol=1e-5)


class Plain(Regression):
    """Without batch norm."""

    def init_model_fn(self, rng):
        return super().init_model_fn(rng)[0], {}

    def model_fn(self, params, batch, model_state, mode, rng, update_batch_norm, dropout_rate=0.1):
        return batch["inputs"] @ params["kernel"] + params["bias"], model_state


def run(workload=None):
    return Run("schedule_free_adamw", workload or Plain(), **POINT)


def test_evaluations_see_the_average_and_training_never_does():
    often, never = run(), run()
    for _ in range(12):
        raw = never.update().kernel()
        assert (often.update().kernel() == raw).all()  # bit for bit
        z = np.array(often.state[0].optimizer.z["kernel"])
        seen = often.prepare().kernel()
        np.testing.assert_allclose(seen, (raw - 0.1 * z) / 0.9, rtol=1e-5, atol=1e-6)
        assert (often.prepare().kernel() == seen).all()  # the second time changes nothing
    assert np.abs(seen - raw).max() > 1e-4


@pytest.mark.parametrize("evaluated", [False, True])
def test_a_resumed_run_goes_on_bit_for_bit(evaluated):
    whole = run().update(7)
    if evaluated:
        whole.prepare()
    other = run()
    saved = jax.tree.map(np.asarray, (whole.state[0], whole.params))
    (state, other.params), other.step = jax.tree.map(jnp.asarray, saved), 7
    other.state = (state, other.state[1])
    assert (whole.update(6).kernel() == other.update(6).kernel()).all()
    assert (whole.prepare().kernel() == other.prepare().kernel()).all()


def test_what_cannot_be_is_refused_in_one_line():
    with pytest.raises(ValueError, match="the statistics of batch norm would be those of other weights") as error:
        run(Regression())
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"brings an average of its own .* leave averaging=lawa out"):
        Recipe(optimizer=schedule_free_adamw, schedule=warmup_constant, averaging=lawa)


def test_the_search_spaces_of_its_twin_suit_it():
    for folder in ("tuning_search_spaces", "tuning_search_spaces/miniperf"):
        for given in json.loads(Path(folder, "schedule_free_adamw.json").read_text()):
            SUBMISSION.check_hyperparameters(namedtuple("H", given)(**given), 10_000)
