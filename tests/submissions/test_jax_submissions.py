"""The JAX submissions on a small model, against slow references and against their PyTorch twins."""

import dataclasses
import importlib
import json
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
import jax.numpy as jnp  # noqa: E402
import torch  # noqa: E402
from flax import serialization  # noqa: E402
from flax.core import FrozenDict  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from submissions.recipe import jax as recipes  # noqa: E402
from submissions.recipe import pytorch as torch_recipes  # noqa: E402
from submissions.recipe.jax import averagers  # noqa: E402
from submissions.recipe.jax.nadamw import scale_by_nadam  # noqa: E402
from submissions.recipe.jax.resuming import shapes, unstacked  # noqa: E402
from tests.submissions.test_submissions import GOOD, NAMES  # noqa: E402
from tests.support import reference  # noqa: E402
from tests.support.jax_runs import EMA, LAWA, STEP_HINT, Regression, Run, point  # noqa: E402
from weight_averaging.jax import HostLAWAState  # noqa: E402
from weight_averaging.jax.host_window import HostWindowAverager  # noqa: E402

SLOW = {"beta3": 0.999, "alpha": 8.0}
has_ademamix = not (recipes.ademamix.missing() or torch_recipes.ademamix.missing())
TWINS = ["nadamw", "adamw", *(["ademamix"] if has_ademamix else [])]


def train(optimizer, params, gradients, rate):
    """As `compiled_step` does with gradients."""
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, jax.tree.map(lambda update: -rate * update, updates))
    return params


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 1000),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.5, 0.9, 0.98]),
    st.sampled_from([0.0, 0.6, 0.99, 0.999]),
    st.sampled_from([0.0, 0.1]),
)
def test_nadamw_follows_its_equations(seed, steps, b1, b2, decay):
    rng = np.random.RandomState(seed)
    start, *gradients = rng.standard_normal((steps + 1, 31)).astype(np.float32)
    hyperparameters = point(one_minus_beta1=1 - b1, beta2=b2, weight_decay=decay)
    optimizer = recipes.nadamw.build(hyperparameters, STEP_HINT)
    found = train(optimizer, {"kernel": start}, [{"kernel": g} for g in gradients], 1e-2)
    expected = reference.nadamw(start, gradients, 1e-2, b1, b2, decay)
    np.testing.assert_allclose(found["kernel"], expected, rtol=2e-6, atol=2e-6)


def test_nadamw_is_not_that_of_optax():
    gradients = [np.full(3, value, np.float32) for value in (1.0, -2.0, 0.5)]
    ours = train(scale_by_nadam(0.9, 0.99), np.ones(3, np.float32), gradients, 0.1)
    theirs = train(optax.scale_by_adam(0.9, 0.99, nesterov=True), np.ones(3, np.float32), gradients, 0.1)
    assert np.abs(ours - theirs).max() > 1e-3


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(TWINS), st.integers(0, 1000), st.integers(1, 20))
def test_an_optimizer_agrees_with_its_pytorch_twin(name, seed, steps):
    rng = np.random.RandomState(seed)
    sizes = {"kernel": (3, 4), "bias": (4,)}
    start, *gradients = [
        {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()} for _ in range(steps + 1)
    ]
    hyperparameters = point(learning_rate=1e-2, weight_decay=0.3, **SLOW)
    step_hint = 12  # within the updates: a slow momentum's schedules end there
    found = train(getattr(recipes, name).build(hyperparameters, step_hint), start, gradients, 1e-2)

    module = torch.nn.Module()
    for key, value in start.items():
        module.register_parameter(key, torch.nn.Parameter(torch.from_numpy(value.copy())))
    optimizer = getattr(torch_recipes, name).build(module, hyperparameters, step_hint)
    for gradient in gradients:
        for key, value in gradient.items():
            getattr(module, key).grad = torch.from_numpy(value)
        optimizer.step()
    for key in sizes:
        np.testing.assert_allclose(found[key], getattr(module, key).detach().numpy(), rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("lawa", LAWA),
        ("adamw_ema", EMA),
        ("nadamw_no_decay", {}),
        pytest.param("ademamix_lawa", {**LAWA, **SLOW}, marks=pytest.mark.skipif(not has_ademamix, reason="optax")),
    ],
)
def test_evaluations_see_the_average_and_change_nothing(name, settings):
    plain, evaluated = Run(name, **settings), Run(name, **settings)
    kernels, means = [], []
    for step in range(1, 12):
        plain.update()
        if step % 2 == 0:
            kernels.append(plain.kernel())
            means.append(plain.mean())
        evaluated.update()
        np.testing.assert_array_equal(evaluated.kernel(), plain.kernel())
        np.testing.assert_array_equal(evaluated.mean(), plain.mean())
        if step in (1, 3, 4, 8, 11):
            average = (lambda snapshots: reference.lawa(snapshots, 3)) if name.endswith("lawa") else None
            if name == "adamw_ema":
                average = lambda snapshots: reference.ema(snapshots, 0.5)  # noqa: E731
            for _ in range(2):  # the second time changes nothing
                evaluated.prepare()
                for found, snapshots, raw in (
                    (evaluated.kernel(), kernels, plain.kernel()),
                    (evaluated.mean(), means, plain.mean()),
                ):
                    expected = None if average is None else average(snapshots)
                    np.testing.assert_allclose(found, raw if expected is None else expected, rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(not has_ademamix, reason="optax is too old")
@pytest.mark.parametrize(("name", "average"), [("ademamix_lawa", LAWA), ("ademamix_ema", EMA)])
def test_with_an_average_training_is_that_of_the_base_optimizer(name, average):
    base, averaged = Run("ademamix", **SLOW), Run(name, **SLOW, **average)
    for _ in range(3):
        np.testing.assert_array_equal(averaged.update(3).kernel(), base.update(3).kernel())
        averaged.prepare()


def test_a_window_in_host_memory_gives_the_same_and_is_resumed(monkeypatch):
    beside = Run("lawa", **LAWA).update(9).prepare()
    monkeypatch.setattr(averagers, "averaging_for", lambda weights, average: HostWindowAverager(average))
    run, resumed = Run("lawa", **LAWA).update(7).prepare(), Run("lawa", **LAWA)
    assert isinstance(run.state[0].averaging, HostLAWAState)
    state, params, model_state = jax.tree.map(
        lambda leaf: jnp.asarray(leaf)[None], (run.state[0], run.params, run.model_state)
    )
    resumed.state, resumed.params, resumed.model_state, resumed.step = (state, resumed.state[1]), params, model_state, 7
    for one in (run, resumed):
        one.update(2).prepare()
        np.testing.assert_array_equal(one.kernel(), beside.kernel())
        np.testing.assert_array_equal(one.mean(), beside.mean())


def test_batch_statistics_stay_the_latest_where_asked():
    run = Run("lawa", **LAWA, averaging_buffers="latest").update(8)
    mean, kernel = run.mean(), run.kernel()
    run.prepare()
    np.testing.assert_array_equal(run.mean(), mean)
    assert (run.kernel() != kernel).any()


def test_statistics_to_recompute_are_refused_in_one_line():
    with pytest.raises(ValueError, match="averaging_buffers='recompute' is for PyTorch only: use") as error:
        Run("lawa", **LAWA, averaging_buffers="recompute")
    assert "\n" not in str(error.value)


def bytes_of(tree) -> int:
    """Of memory: what two leaves share counts once."""
    leaves = {id(leaf): leaf for leaf in jax.tree.leaves(tree)}
    return sum(leaf.nbytes for leaf in leaves.values())


@pytest.mark.parametrize(("name", "settings", "copies"), [("nadamw", {}, 3), ("ema", EMA, 4), ("lawa", LAWA, 6)])
def test_training_holds_no_weights_twice(name, settings, copies):
    """Weights, two moments, and the average or the window; 6 weights and 5 statistics, the latter in the average."""
    run = Run(name, **settings)
    structure, expected = jax.tree.structure(run.state[0]), shapes(run.state[0])
    counters = 4 * 20
    size = 4 * (6 * copies + 5 * (copies - 2))
    for _ in range(2):
        run.update(6)
        held = bytes_of((run.state[0], run.params, run.model_state))
        assert size <= held < size + counters
        run.prepare()
        assert bytes_of((run.state[0], run.params, run.model_state)) <= held + 4 * (6 + 5)
        # What is saved now has structure and shapes of the state that it will be restored into.
        assert jax.tree.structure(run.state[0]) == structure
        assert shapes(run.state[0]) == expected


def test_what_a_harness_restores_as_for_pmap_is_taken_apart():
    run, other = Run("lawa", **LAWA).update(7).prepare(), Run("lawa", **LAWA)
    state, params, model_state = jax.tree.map(
        lambda leaf: np.stack([np.asarray(leaf)] * 4)[None], (run.state[0], run.params, run.model_state)
    )  # four devices, in a finished run that was resumed once more
    other.state, other.params, other.model_state, other.step = (state, other.state[1]), params, model_state, 7
    np.testing.assert_array_equal(other.update().kernel(), run.update().kernel())
    np.testing.assert_array_equal(other.prepare().kernel(), run.prepare().kernel())


@pytest.mark.parametrize("statistics", [{}, {"batch_stats": {"mean": jnp.zeros(5)}}], ids=["none", "some"])
def test_a_run_whose_model_state_comes_in_another_container_is_resumed(statistics, monkeypatch):
    """The ViT of the harness gives {} at the start and returns None; what is restored must fit what is given."""

    def model_fn(self, params, batch, model_state, mode, rng, update_batch_norm, dropout_rate=0.1):
        logits = batch["inputs"] @ params["kernel"] + params["bias"]
        return logits, FrozenDict(model_state) if model_state else None

    init = Regression.init_model_fn
    monkeypatch.setattr(Regression, "init_model_fn", lambda self, rng: (init(self, rng)[0], statistics))
    monkeypatch.setattr(Regression, "model_fn", model_fn)
    run, resumed = Run("lawa", **LAWA), Run("lawa", **LAWA)
    run.update(3)
    assert jax.tree.structure(run.model_state) == jax.tree.structure(resumed.model_state)
    saved = {"state": run.state[0], "params": run.params, "model_state": run.model_state}
    target = {"state": resumed.state[0], "params": resumed.params, "model_state": resumed.model_state}
    restored = serialization.from_bytes(target, serialization.to_bytes(saved))  # as the harness does
    resumed.state, resumed.step = (restored["state"], resumed.state[1]), 3
    resumed.params, resumed.model_state = restored["params"], restored["model_state"]
    for each in (run, resumed):
        each.update(6).prepare()
    np.testing.assert_array_equal(run.kernel(), resumed.kernel())


def test_the_state_of_other_hyperparameters_is_refused_in_one_line():
    run, other = Run("lawa", **LAWA).update().prepare(), Run("lawa", **{**LAWA, "averaging_window": 4})
    other.state, other.params = (run.state[0], other.state[1]), run.params
    with pytest.raises(ValueError, match=r"cannot resume: .*'bias'.* is \(3, 1\) in the checkpoint, \(4, 1\)") as error:
        other.update()
    assert "\n" not in str(error.value)


def test_a_state_saved_between_evaluations_is_taken():
    run, other = Run("lawa", **LAWA).update(7), Run("lawa", **LAWA)
    copied = jax.tree.map(np.array, (run.state[0], run.params, run.model_state))
    assert unstacked(copied, shapes((other.state[0], other.params, other.model_state))) == copied
    other.state, other.params, other.model_state, other.step = (copied[0], other.state[1]), *copied[1:], 7
    np.testing.assert_array_equal(other.update().kernel(), run.update().kernel())


def test_the_log_has_what_that_of_pytorch_has():
    run = Run("lawa", **LAWA, grad_clip=1e-3, label_smoothing=0.1).update(7)
    metrics, step = run.workload.logged[-1]
    assert step == 6
    assert set(metrics) == {
        "loss", "grad_norm", "learning_rate", "averaging/snapshots", "averaging/last_snapshot", "averaging/ready",
    }  # fmt: skip
    assert metrics["grad_norm"] == pytest.approx(1e-3)
    assert (metrics["averaging/snapshots"], metrics["averaging/last_snapshot"], metrics["averaging/ready"]) == (3, 6, 1)
    assert metrics["learning_rate"] < GOOD["learning_rate"]


def test_weights_of_examples_divide_the_loss_by_their_sum():
    masked, short = Run("nadamw"), Run("nadamw")
    rng = np.random.RandomState(0)
    inputs, targets = np.tile(rng.randn(4, 5), (2, 1)).astype(np.float32), np.tile(rng.randn(4), 2).astype(np.float32)
    weights = np.repeat([1, 0], 4).astype(np.float32)
    batches = {"inputs": inputs, "targets": targets, "weights": weights}, {"inputs": inputs[:4], "targets": targets[:4]}
    for run, batch in zip((masked, short), batches, strict=True):
        run.state, run.params, _ = run.submission.update_params(batch=batch, **run.common())
    np.testing.assert_allclose(masked.kernel(), short.kernel(), rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_every_search_space_suits_its_submission(name):
    module = importlib.import_module(f"submissions.jax.{name}.submission")
    for folder in ("tuning_search_spaces", "tuning_search_spaces/miniperf"):
        for values in json.loads(Path(folder, f"{name}.json").read_text()):
            module.check_hyperparameters(namedtuple("H", values)(**values), 10_000)


def test_an_optimizer_that_this_optax_lacks_is_named_in_one_line():
    recipe = recipes.Recipe(dataclasses.replace(recipes.ademamix, kind=None), recipes.warmup_cosine)
    with pytest.raises(ValueError, match=r"ademamix is not in optax [\d.]+: pip install 'optax>=0.2.5'") as error:
        recipe.check_hyperparameters(point(**SLOW), 100)
    assert "\n" not in str(error.value)


def test_bad_hyperparameters_are_named_in_one_line():
    module = importlib.import_module("submissions.jax.nadamw.submission")
    for changes, message in [
        ({"beta2": 1}, r"beta2 must be a number in \[0, 1\)"),
        ({"lr": 1}, "takes no hyperparameter lr"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            module.check_hyperparameters(point(**changes), 10_000)
        assert "\n" not in str(error.value)


def test_a_model_of_the_other_framework_is_refused_in_one_line():
    module = torch.nn.Linear(1, 1)
    for framework, model, message in [
        ("jax", module, "the submission is in JAX, the model in PyTorch: run it with --framework=jax"),
        ("pytorch", {"kernel": jnp.ones(1)}, "is in PyTorch, the model is not: run it with --framework=pytorch"),
    ]:
        submission = importlib.import_module(f"submissions.{framework}.nadamw.submission")
        with pytest.raises(ValueError, match=message):
            submission.init_optimizer_state(Regression(), model, None, point(), None)
