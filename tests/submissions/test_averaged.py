"""Another submission, averaged: it trains as it does alone, and evaluations see the average."""

import importlib
import inspect
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from launching.rehearsal.averages import promise_of
from miniperf import spec
from submissions.recipe.averaging import ema, lawa
from tests.support.jax_runs import EMA, LAWA, POINT
from tests.support.submission_runs import Run
from weight_averaging import averages

HYPERPARAMETERS = {"lawa": LAWA, "ema": EMA}
KINDS = {"lawa": lawa, "ema": ema}


def averaged(base, *given, framework="pytorch", **options):
    return importlib.import_module(f"submissions.averaged.{framework}").averaged(base, *given, **options)


def base_of(framework, name="nadamw"):
    return importlib.import_module(f"submissions.{framework}.{name}.submission")


@pytest.fixture(params=["pytorch", "jax"])
def framework(request):
    return request.param


@pytest.mark.parametrize("kind", ["lawa", "ema"])
def test_it_is_the_submission_that_averages_itself_bit_for_bit(framework, kind):
    own = Run(base_of(framework, kind), framework, {**POINT, **HYPERPARAMETERS[kind]})
    around = Run(
        averaged(base_of(framework), KINDS[kind], framework=framework), framework, {**POINT, **HYPERPARAMETERS[kind]}
    )
    for updates in (1, 4, 3, 2):
        for run in (own, around):
            run.update(updates).prepare().prepare()
        assert (own.weights() == around.weights()).all()


@pytest.mark.parametrize("how", ["hyperparameters", "point", "description"])
def test_training_is_as_without_and_evaluations_see_the_mean(framework, how):
    base = base_of(framework)
    description = averages.LAWA(interval=2, window=3)
    kind, point = description if how == "description" else lawa, LAWA if how == "point" else None
    submission = averaged(base, kind, point=point, framework=framework)
    alone = Run(base, framework, POINT)
    run = Run(submission, framework, {**POINT, **(LAWA if how == "hyperparameters" else {})})
    seen = {}
    for step in range(1, 13):
        seen[step] = alone.update().weights()
        assert (run.update().weights() == seen[step]).all(), step
        run.prepare()
        due = list(range(2, step + 1, 2))[-3:]
        expected = np.mean([seen[s] for s in due], axis=0) if len(due) == 3 else seen[step]
        counters = np.isclose(seen[step], step)  # of batch norm in PyTorch: whole numbers are not averaged
        np.testing.assert_allclose(run.weights()[~counters], expected[~counters], rtol=1e-6, atol=1e-7)


def module(**functions):
    """A base in PyTorch: plain gradient descent, with what a test wants otherwise."""
    made = ModuleType("made")

    def init_optimizer_state(workload, model_params, model_state, hyperparameters, rng):
        return {"optimizer": torch.optim.SGD(model_params.parameters(), lr=hyperparameters.learning_rate)}

    def update_params(workload, current_param_container, current_params_types, model_state, hyperparameters, batch,
                      loss_type, optimizer_state, eval_results, global_step, rng):  # fmt: skip
        assert not any(name.startswith("averaging_") for name in hyperparameters._fields)
        assert list(optimizer_state) == ["optimizer"]
        optimizer_state["optimizer"].zero_grad()
        logits, _ = workload.model_fn(
            current_param_container, batch, None, spec.ForwardPassMode.TRAIN, rng, update_batch_norm=True
        )
        workload.loss_fn(batch["targets"], logits)["summed"].backward()
        optimizer_state["optimizer"].step()
        return {**optimizer_state}, current_param_container, model_state

    vars(made).update(
        init_optimizer_state=init_optimizer_state,
        update_params=update_params,
        data_selection=lambda workload, queue, *rest: next(queue),
        get_batch_size=lambda workload: 8,
        **functions,
    )
    return made


def test_the_signature_is_the_bases():
    assert "train_state" in inspect.signature(averaged(base_of("pytorch"), lawa).update_params).parameters
    assert "train_state" not in inspect.signature(averaged(module(), lawa).update_params).parameters


def test_a_base_that_swaps_weights_for_evaluations_is_refused_or_averaged_on_purpose():
    def prepare_for_eval(current_param_container, optimizer_state, model_state, **rest):
        with torch.no_grad():
            current_param_container[1].weight.mul_(0.5)
        return optimizer_state, current_param_container, model_state

    base = module(prepare_for_eval=prepare_for_eval)
    point = {"learning_rate": 0.01, "averaging_interval": 1, "averaging_window": 2}
    with pytest.raises(ValueError, match=r"made brings other weights to evaluations itself: average on with on_top"):
        Run(averaged(base, lawa), "pytorch", point).update(3).prepare()
    run = Run(averaged(base, lawa, on_top=True), "pytorch", point)
    after = [run.update().weights() for _ in range(3)]
    parameters = slice(0, 10)  # scales and biases of batch norm, which it leaves alone
    np.testing.assert_allclose(run.prepare().weights()[parameters], np.mean(after[1:], axis=0)[parameters], rtol=1e-6)


def test_a_run_that_diverges_is_evaluated_as_it_is(framework):
    """A base that has a function for evaluations changes no NaN: its run is no error."""
    base = base_of(framework)
    run = Run(averaged(base, lawa, framework=framework), framework, {**POINT, **LAWA, "learning_rate": 1e30})
    assert callable(base.prepare_for_eval)
    run.update(5).prepare()
    assert np.isnan(run.weights()).any()
    run.update(2).prepare()


def test_a_base_that_accumulates_is_averaged_by_its_updates(caplog):
    def accumulating(update):
        def update_params(**given):
            if (given["global_step"] + 1) % 4:
                return given["optimizer_state"], given["current_param_container"], given["model_state"]
            return update(**given)

        return update_params

    point = {"learning_rate": 0.01, "averaging_interval": 1, "averaging_window": 2}
    base = module()
    base.update_params = accumulating(base.update_params)
    run = Run(averaged(base, lawa, calls_per_update=4), "pytorch", point)
    after = [run.update(4).weights() for _ in range(3)]
    learned = slice(0, 10)
    np.testing.assert_allclose(run.prepare().weights()[learned], np.mean(after[1:], axis=0)[learned], rtol=1e-6)
    assert "calls_per_update" not in caplog.text
    with caplog.at_level("WARNING", logger="absl"):
        Run(averaged(base, lawa), "pytorch", point).update(4)
    assert caplog.text.count("of a base that accumulates say calls_per_update=") == 1


def test_a_base_has_hyperparameters_of_one_type_throughout():
    """A new type at every update would be compiled anew by a base in JAX that hands them on."""
    seen = []
    base = module()
    update = base.update_params

    def update_params(**given):
        seen.append(type(given["hyperparameters"]))
        return update(**given)

    base.update_params = update_params
    point = {"learning_rate": 0.01, "averaging_interval": 1, "averaging_window": 2}
    Run(averaged(base, lawa), "pytorch", point).update(6)
    assert len(set(seen)) == 1


def test_what_cannot_be_averaged_is_refused():
    with pytest.raises(ValueError, match="made is no submission: it lacks update_params, data_selection, get_batch"):
        averaged(SimpleNamespace(__name__="made", init_optimizer_state=print), lawa)
    with pytest.raises(ValueError, match="a self-tuning submission needs the hyperparameters of its average"):
        Run(averaged(base_of("pytorch", "nadamw_self"), lawa), "pytorch", None)
    with pytest.raises(ValueError, match="needs batches, which a base keeps to itself"):
        Run(averaged(base_of("pytorch"), lawa), "pytorch", {**POINT, **LAWA, "averaging_buffers": "recompute"})
    with pytest.raises(ValueError, match="give either averaging_horizon and averaging_window"):
        Run(averaged(base_of("pytorch"), lawa), "pytorch", POINT)


def test_a_self_tuning_base(framework):
    run = Run(averaged(base_of(framework, "nadamw_self"), ema, point=EMA, framework=framework), framework, None)
    raw = run.update(4).weights()
    assert (run.prepare().weights() != raw).any()


def test_it_says_what_it_averages_for_a_rehearsal():
    """Intervals of a promise are calls of update_params, as the harness counts them."""
    submission = averaged(base_of("pytorch"), lawa, point=LAWA, calls_per_update=3)
    promise = promise_of(SimpleNamespace(submission=submission), None, 300)
    assert promise["interval"] == 3 * LAWA["averaging_interval"]
    assert promise["needed"] == LAWA["averaging_window"]
    assert promise["raw_before"]
    on_top = averaged(base_of("pytorch"), lawa, point=LAWA, on_top=True)
    assert not promise_of(SimpleNamespace(submission=on_top), None, 300)["raw_before"]
    assert promise_of(SimpleNamespace(), None, 300) is None
