"""Distributed Shampoo, where it is installed: its equations; averaging, evaluations and resumes leave it alone."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from submissions.recipe.pytorch import shampoo
from submissions.recipe.pytorch.shampoo import PACKAGE
from tests.submissions.test_base_optimizers import AVERAGES, POINT, Run, trained
from tests.support import reference
from tests.support.small_models import flat

pytestmark = pytest.mark.skipif(shampoo.missing() is not None, reason="distributed_shampoo is not installed")
SETTINGS = {"precondition_frequency": 3}


def by_equations(theta, gradients, lr, beta1, beta2, weight_decay, momentum, every):
    """In float64: the merged matrix as a vector, its full preconditioner to the power -1/2, as long as Adam's step."""
    theta = theta.astype(np.float64).reshape(-1)
    size = theta.size
    factor, root = np.zeros((size, size)), np.eye(size)
    first, second, heavy = np.zeros(size), np.zeros(size), np.zeros(size)
    for step, gradient in enumerate(gradients, start=1):
        g = gradient.astype(np.float64).reshape(-1)
        factor = beta2 * factor + (1 - beta2) * np.outer(g, g)
        second = beta2 * second + (1 - beta2) * g * g
        corrected = 1 - beta2**step
        if step % every == 0 and step >= every:
            values, vectors = np.linalg.eigh(factor / corrected)
            values += 1e-8 - min(values.min(), 0.0)
            root = vectors @ np.diag(values**-0.5) @ vectors.T
        first = beta1 * first + (1 - beta1) * g
        filtered = first / (1 - beta1**step)
        adam = filtered / (np.sqrt(second / corrected) + 1e-8)
        if step < every:
            direction = adam
        else:
            direction = root @ filtered
            direction *= np.linalg.norm(adam) / np.linalg.norm(direction)
        direction = direction + weight_decay * theta
        heavy = momentum * heavy + direction
        theta = theta - lr * (direction + momentum * heavy)
    return theta.reshape(gradients[0].shape)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("every", [6, 100])  # so many gradients span all four dimensions
def test_it_follows_its_equations(seed, every):
    theta, *gradients = np.random.RandomState(seed).standard_normal((15, 2, 2)).astype(np.float32)
    module = torch.nn.Linear(2, 2, bias=False)
    module.weight.data.copy_(torch.from_numpy(theta))
    optimizer = shampoo.build(module, SimpleNamespace(**POINT, precondition_frequency=every), step_hint=100)
    expected = by_equations(theta, gradients, 1e-2, 0.9, 0.95, 0.5, 0.5, every)
    np.testing.assert_allclose(trained(optimizer, module, gradients), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("average", AVERAGES)
def test_averaging_leaves_training_as_it_is_and_evaluations_see_the_average(average):
    plain = Run("shampoo", **SETTINGS)
    averaged = Run(f"shampoo_{average}", **SETTINGS, **AVERAGES[average])
    snapshots = []
    for step in range(1, 13):
        plain.update()
        if step % 2 == 0:
            snapshots.append(flat(plain.model))
        averaged.update()
        assert (flat(averaged.model) == flat(plain.model)).all()
        if step in (1, 7, 12):
            function = reference.lawa if average == "lawa" else reference.ema
            expected = function(snapshots, 3 if average == "lawa" else 0.5)
            seen = flat(averaged.prepare().model)
            np.testing.assert_allclose(seen, flat(plain.model) if expected is None else expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("evaluated", [False, True])
@pytest.mark.parametrize("name", ["shampoo", "shampoo_lawa"])
def test_a_resumed_run_goes_on_bit_for_bit(name, evaluated):
    settings = SETTINGS if name == "shampoo" else {**SETTINGS, **AVERAGES["lawa"]}
    whole = Run(name, **settings).update(7)
    if evaluated:
        whole.prepare()
    other = Run(name, **settings).resumed(whole)
    assert [g["lr"] for g in other.state["optimizer"].param_groups] == [
        g["lr"] for g in whole.state["optimizer"].param_groups
    ]
    for run in (whole, other):
        run.update(6)
    assert (flat(whole.model) == flat(other.model)).all()
    assert (flat(whole.prepare().model) == flat(other.prepare().model)).all()


def test_its_state_is_tensors_and_numbers(tmp_path):
    run = Run("shampoo", **SETTINGS).update(4)
    torch.save(run.state["optimizer"].state_dict(), tmp_path / "state.pt")
    again = torch.load(tmp_path / "state.pt", weights_only=True)
    assert set(again) == {"state", "rates"}


def test_a_state_without_a_parameter_is_refused():
    run = Run("shampoo", **SETTINGS).update(4)
    state = run.state["optimizer"].state_dict()
    del state["state"]["0"]
    with pytest.raises(ValueError, match=r"the state is of \d+ parameters, the model has \d+$"):
        Run("shampoo", **SETTINGS).state["optimizer"].load_state_dict(state)


def test_another_commit_of_the_library_is_told(monkeypatch):
    types = importlib.import_module(f"{PACKAGE}.shampoo_types")
    monkeypatch.delattr(types, "AdamGraftingConfig")
    with pytest.raises(ImportError, match="is of another commit: pip install --force-reinstall 'torch-shampoo @ git"):
        Run("shampoo", **SETTINGS)
