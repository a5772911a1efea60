"""Averages along a run in JAX: those of the weights, and training as without them."""

from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")

import jax
import jax.numpy as jnp

from miniperf.tracking.jax import TrackedSubmission
from weight_averaging import averages

DESCRIBED = {
    "window": averages.LAWA(interval=2, window=3),
    "ema": averages.EMA(interval=1, decay=0.7),
    "growing": averages.Power(gamma=11.0, interval=1),
}


def base() -> Any:
    """A submission whose weights are drawn anew, by a function that takes their memory."""
    module: Any = ModuleType("base")
    draw = jax.jit(
        lambda params, key: jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape), params), donate_argnums=0
    )

    def update_params(*, global_step, current_param_container, model_state, optimizer_state, train_state=None):
        del train_state
        key = jax.random.key(global_step)
        params, statistics = draw(current_param_container, key), draw(model_state["batch_stats"], key)
        return optimizer_state, params, {"batch_stats": statistics}

    module.update_params = update_params
    module.init_optimizer_state = lambda workload, params, model_state, hyperparameters, rng: ({"count": 0}, None)
    module.data_selection, module.get_batch_size = None, None
    return module


def trained(module: Any, updates: int, seen: Any = None) -> tuple[Any, Any]:
    params = {"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)}
    model_state: Any = {"batch_stats": {"mean": jnp.zeros(3)}}
    state = module.init_optimizer_state(SimpleNamespace(), params, model_state, None, None)
    for step in range(updates):
        given = {"current_param_container": params, "model_state": model_state, "optimizer_state": state}
        state, params, model_state = module.update_params(global_step=step, **given)
        if seen is not None:
            seen.append(flat(params, model_state))
    return params, model_state


def flat(*trees: Any) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(trees)])


@pytest.mark.parametrize("name", list(DESCRIBED))
def test_averages_are_those_of_the_weights_in_float64(name):
    tracked, seen = TrackedSubmission(base(), DESCRIBED), []
    params, model_state = trained(tracked, 23, seen)
    with tracked.averaged(name, params, model_state) as average:
        assert average is not None
        found = flat(*average)
        assert jax.tree.structure(average) == jax.tree.structure((params, model_state))
    members = DESCRIBED[name].members(range(1, 24), 23)
    weights = DESCRIBED[name].coefficients(len(members))
    exact = sum(weight * seen[member - 1] for weight, member in zip(weights, members, strict=True))
    assert np.abs(found - exact).max() < 1e-6
    assert len(tracked.seconds) == 23


def test_training_is_that_of_the_submission_alone():
    raw: list[list[np.ndarray]] = [[], []]
    trained(base(), 9, raw[0])
    trained(TrackedSubmission(base(), DESCRIBED), 9, raw[1])
    np.testing.assert_array_equal(*raw)


def test_there_is_none_before_the_window_is_full():
    tracked = TrackedSubmission(base(), DESCRIBED)
    params, model_state = trained(tracked, 5)
    with tracked.averaged("window", params, model_state) as average:
        assert average is None
    with tracked.averaged("ema", params, model_state) as average:
        assert average is not None
