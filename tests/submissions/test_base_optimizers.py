"""Base optimizers from packages: their equations, and that averaging, evaluations and resumes leave them alone."""

import dataclasses
import importlib
import io
import json
import re
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from analysis.comparisons import comparison
from miniperf import workloads
from scripts import average_checkpoints
from submissions.recipe.offline import average_of
from submissions.recipe.pytorch import (
    Recipe,
    adamw,
    ademamix,
    lawa,
    schedule_free_adamw,
    shampoo,
    soap,
    warmup_constant,
)
from tests.miniperf.test_runner import assert_same_end, settings_of, train, trial
from tests.support import reference
from tests.support.small_models import flat, model_of
from weight_averaging import averages

needs_them = pytest.mark.skipif(
    any(optimizer.missing() for optimizer in (ademamix, schedule_free_adamw, soap)), reason="the extra `optimizers`"
)
NAMES = [
    "ademamix", "ademamix_lawa", "ademamix_ema", "schedule_free_adamw", "soap", "soap_lawa", "soap_ema",
]  # fmt: skip
POINT = {"learning_rate": 1e-2, "one_minus_beta1": 0.1, "beta2": 0.95, "weight_decay": 0.5}
SLOW = {"beta3": 0.999, "alpha": 8.0}


def trained(optimizer, module: nn.Module, gradients: list[np.ndarray]) -> np.ndarray:
    for gradient in gradients:
        module.weight.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
    return module.weight.detach().numpy()


def matrix_and_gradients(seed: int) -> tuple[nn.Module, np.ndarray, list[np.ndarray]]:
    theta, *gradients = np.random.RandomState(seed).standard_normal((15, 4, 3)).astype(np.float32)
    module = nn.Linear(3, 4, bias=False)
    module.weight.data.copy_(torch.from_numpy(theta))
    return module, theta, gradients


@needs_them
@pytest.mark.parametrize("seed", range(3))
def test_ademamix_follows_its_equations(seed):
    module, theta, gradients = matrix_and_gradients(seed)
    optimizer = ademamix.build(module, SimpleNamespace(**POINT, **SLOW), step_hint=10)  # the schedules end before
    expected = reference.ademamix(theta, gradients, 1e-2, (0.9, 0.95, 0.999), 8.0, 10, 0.5)
    np.testing.assert_allclose(trained(optimizer, module, gradients), expected, rtol=1e-5, atol=2e-6)


@needs_them
def test_ademamix_without_the_slow_momentum_is_adamw():
    (module, _, gradients), (other, _, _) = matrix_and_gradients(0), matrix_and_gradients(0)
    point = SimpleNamespace(**POINT, **{**SLOW, "alpha": 0.0})
    theirs = trained(ademamix.build(module, point, 10), module, gradients)
    np.testing.assert_allclose(theirs, trained(adamw.build(other, point, 10), other, gradients), rtol=2e-6, atol=1e-6)


@needs_them
@pytest.mark.parametrize("seed", range(3))
def test_schedule_free_adamw_follows_its_equations(seed):
    module, theta, gradients = matrix_and_gradients(seed)
    optimizer = schedule_free_adamw.build(module, SimpleNamespace(**POINT), step_hint=100)
    scheduler = warmup_constant(optimizer, SimpleNamespace(warmup_factor=0.05), 100)
    optimizer.train()
    rates = []
    for gradient in gradients:
        rates.append(optimizer.param_groups[0]["lr"])
        trained(optimizer, module, [gradient])
        scheduler.step()
    assert rates[:7] == pytest.approx([1e-12, 2e-3, 4e-3, 6e-3, 8e-3, 1e-2, 1e-2])
    y, x = reference.schedule_free_adamw(theta, gradients, rates, 0.9, 0.95, 0.5)
    np.testing.assert_allclose(module.weight.detach().numpy(), y, rtol=1e-5, atol=2e-6)
    optimizer.eval()
    np.testing.assert_allclose(module.weight.detach().numpy(), x, rtol=1e-5, atol=5e-6)


@needs_them
@pytest.mark.parametrize("seed", range(3))
def test_soap_follows_its_equations(seed):
    module, theta, gradients = matrix_and_gradients(seed)
    optimizer = soap.build(module, SimpleNamespace(**POINT, precondition_frequency=3), step_hint=100)
    expected = reference.soap(theta, gradients, 1e-2, 0.9, 0.95, 0.5, every=3)
    np.testing.assert_allclose(trained(optimizer, module, gradients), expected, rtol=1e-4, atol=1e-5)


class Workload:
    """A small model with batch norm, as `submission_runner.train_once` has it."""

    step_hint, metrics_logger = 40, None

    def model_fn(self, model, batch, model_state, mode, rng, update_batch_norm, dropout_rate=0.0):
        return model(batch["inputs"]), None

    def loss_fn(self, label_batch, logits_batch, mask_batch=None, label_smoothing=0.0):
        return {"summed": ((logits_batch - label_batch) ** 2).sum(), "n_valid_examples": torch.tensor(len(label_batch))}


class Run:
    """A run of a submission, by hand."""

    def __init__(self, name: str, **hyperparameters: float) -> None:
        self.submission = importlib.import_module(f"submissions.pytorch.{name}.submission")
        values = {**POINT, "warmup_factor": 0.1, **hyperparameters}
        self.hyperparameters = namedtuple("H", values)(**values)
        self.workload, self.model, self.step = Workload(), model_of(), 0
        self.state = self.submission.init_optimizer_state(self.workload, self.model, None, self.hyperparameters, None)

    def _common(self) -> dict:
        return {
            "workload": self.workload, "current_param_container": self.model, "current_params_types": None,
            "model_state": None, "hyperparameters": self.hyperparameters, "loss_type": None,
            "optimizer_state": self.state, "eval_results": [], "global_step": self.step, "rng": [0, 0],
        }  # fmt: skip

    def update(self, count: int = 1) -> "Run":
        for _ in range(count):
            generator = torch.Generator().manual_seed(self.step)
            batch = {
                "inputs": torch.randn(8, 3, generator=generator),
                "targets": torch.randn(8, 2, generator=generator),
            }
            self.state, self.model, _ = self.submission.update_params(batch=batch, **self._common())
            self.step += 1
        return self

    def prepare(self) -> "Run":
        self.state, self.model, _ = self.submission.prepare_for_eval(**self._common())
        return self

    def resumed(self, other: "Run") -> "Run":
        """From what the harness would have saved of another one."""
        file = io.BytesIO()
        torch.save({name: value.state_dict() for name, value in {**other.state, "model": other.model}.items()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        self.model.load_state_dict(saved.pop("model"))
        for name, state in saved.items():
            self.state[name].load_state_dict(state)
        self.step = other.step
        return self


AVERAGES = {
    "lawa": {"averaging_interval": 2, "averaging_window": 3},
    "ema": {"averaging_interval": 2, "averaging_decay": 0.5},
}


@needs_them
@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize(("base", "settings"), [("ademamix", SLOW), ("soap", {"precondition_frequency": 3})])
def test_averaging_leaves_training_as_it_is_and_evaluations_see_the_average(base, settings, average):
    plain, averaged = Run(base, **settings), Run(f"{base}_{average}", **settings, **AVERAGES[average])
    snapshots = []
    for step in range(1, 13):
        plain.update()
        if step % 2 == 0:
            snapshots.append(flat(plain.model))
        averaged.update()
        assert (flat(averaged.model) == flat(plain.model)).all()
        if step in (1, 5, 7, 12):
            function = reference.lawa if average == "lawa" else reference.ema
            expected = function(snapshots, 3 if average == "lawa" else 0.5)
            for _ in range(2):  # the second time changes nothing
                averaged.prepare()
                seen = flat(averaged.model)
                np.testing.assert_allclose(
                    seen, flat(plain.model) if expected is None else expected, rtol=1e-5, atol=1e-6
                )


@needs_them
@pytest.mark.parametrize("evaluated", [False, True])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ademamix_ema", {**SLOW, **AVERAGES["ema"]}),
        ("soap_lawa", {"precondition_frequency": 3, **AVERAGES["lawa"]}),
        ("schedule_free_adamw", {}),
    ],
)
def test_a_resumed_run_goes_on_bit_for_bit(name, settings, evaluated):
    whole = Run(name, **settings).update(7)
    if evaluated:
        whole.prepare()
    other = Run(name, **settings).resumed(whole)
    for run in (whole, other):
        run.update(6)
    assert (flat(whole.model) == flat(other.model)).all()
    assert (flat(whole.prepare().model) == flat(other.prepare().model)).all()


@needs_them
def test_a_run_of_schedule_free_adamw_is_resumed_from_its_checkpoint(tmp_path, monkeypatch):
    """Checkpoints are written after evaluations, with the average in the model."""
    monkeypatch.setattr(type(workloads.make("mini_imagenet_vit")), "max_eval_train_examples", 16)
    point = trial(tmp_path, "schedule_free_adamw")
    settings = dataclasses.replace(settings_of("schedule_free_adamw", steps=16, every=4), batch_size=16)
    train(tmp_path / "whole", point, settings)
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    for step in (12, 16):
        (tmp_path / "broken" / f"checkpoint_{step}").unlink()
    train(tmp_path / "broken", point, settings)
    assert_same_end(tmp_path / "whole", tmp_path / "broken")


@needs_them
def test_schedule_free_adamw_is_evaluated_at_its_average_with_statistics_of_that():
    often, never = Run("schedule_free_adamw"), Run("schedule_free_adamw")
    for step in range(1, 13):
        raw = often.update().model
        y = {name: p.detach().clone() for name, p in raw.named_parameters()}
        z = {name: often.state["optimizer"].state[p]["z"].clone() for name, p in raw.named_parameters()}
        seen = flat(often.prepare().model)
        for name, p in often.model.named_parameters():
            np.testing.assert_allclose(p.detach(), ((y[name] - 0.1 * z[name]) / 0.9).detach(), rtol=1e-4, atol=1e-5)
        assert (flat(often.prepare().model) == seen).all()  # the second time changes nothing
        if step == 12:  # of the first layer's outputs under the average, over the latest ten batches
            with torch.no_grad():
                outputs = [often.model[0](batch["inputs"]) for batch in often.state["recent_batches"].batches]
            mean, weight = torch.zeros(5), 0.0
            for output in outputs:
                mean, weight = 0.9 * mean + 0.1 * output.mean(0), 0.9 * weight + 0.1
            torch.testing.assert_close(often.model[1].running_mean, mean / weight, rtol=1e-5, atol=1e-6)
    never.update(12).prepare()
    for left, right in zip(often.model.parameters(), never.model.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)  # it swaps by arithmetic, not by a copy


def test_averaging_on_top_of_an_average_is_refused_in_one_line():
    with pytest.raises(
        ValueError, match=r"schedule_free_adamw brings an average of its own .* leave averaging=lawa out"
    ):
        Recipe(optimizer=schedule_free_adamw, schedule=warmup_constant, averaging=lawa)


@pytest.mark.parametrize("optimizer", [ademamix, schedule_free_adamw, shampoo, soap])
def test_a_missing_package_is_named_in_one_line(optimizer, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    recipe = Recipe(optimizer=optimizer, schedule=warmup_constant)
    with pytest.raises(ValueError, match=rf"missing: pip install '?{re.escape(optimizer.requirement)}'?$") as error:
        recipe.check_hyperparameters(SimpleNamespace(), 100)
    assert "\n" not in str(error.value)


@needs_them
@pytest.mark.parametrize("name", NAMES)
def test_every_search_space_suits_its_submission(name):
    check = importlib.import_module(f"submissions.pytorch.{name}.submission").check_hyperparameters
    for folder in ("tuning_search_spaces", "tuning_search_spaces/miniperf"):
        points = json.loads(Path(folder, f"{name}.json").read_text())
        assert isinstance(points, list)
        for point in points:
            check(namedtuple("H", point)(**point), 10_000)


@needs_them
@pytest.mark.parametrize(("base", "slow"), [("ademamix", SLOW), ("soap", {})])
@pytest.mark.parametrize("kind", AVERAGES)
def test_an_average_can_be_made_of_a_runs_snapshots_instead(base, slow, kind):
    average = average_of(f"{base}_{kind}", SimpleNamespace(**POINT, **slow, **AVERAGES[kind]), 100)
    assert isinstance(average, {"lawa": averages.LAWA, "ema": averages.EMA}[kind])
    assert average.interval == 2
    assert comparison._AVERAGED[f"{base}_{kind}"] == base
    assert f"{base}_{kind}" in average_checkpoints.SUBMISSIONS


@pytest.mark.parametrize("name", ["nadamw", "adamw"])
def test_a_whole_number_counts_as_one(name):
    """JSON has 0 for 0.0; torch's optimizers take no pair of both."""
    whole, other = (Run(name, beta2=value).update(2).model.state_dict() for value in (0, 0.0))
    assert all(torch.equal(whole[key], other[key]) for key in whole)


@needs_them
def test_hyperparameters_of_theirs_are_checked():
    for name, changes, message in [
        ("ademamix", {}, "the hyperparameter beta3, alpha is missing"),
        ("ademamix", {**SLOW, "one_minus_beta1": 1.0}, r"one_minus_beta1 must be a number in \(0, 1\)"),
        ("soap", {"precondition_frequency": 2.5}, "precondition_frequency must be a number that is whole and >= 1"),
        ("schedule_free_adamw", {"averaging_horizon": 0.1}, "takes no hyperparameter averaging_horizon"),
    ]:
        point = {**POINT, "warmup_factor": 0.1, **changes}
        check = importlib.import_module(f"submissions.pytorch.{name}.submission").check_hyperparameters
        with pytest.raises(ValueError, match=message):
            check(namedtuple("H", point)(**point), 100)
