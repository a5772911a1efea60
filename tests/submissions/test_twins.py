"""Whole submissions in JAX and PyTorch on one model with the same batches: the same weights, evaluations and logs."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest

jax = pytest.importorskip("jax")
pytest.importorskip("optax")
import torch  # noqa: E402
from torch import nn  # noqa: E402

from tests.support.jax_runs import EMA, LAWA, STEP_HINT, Run, point  # noqa: E402


class Model(nn.Module):
    """`Regression` of the tests in JAX as a module."""

    def __init__(self, kernel: np.ndarray) -> None:
        super().__init__()
        self.kernel, self.bias = nn.Parameter(torch.from_numpy(kernel)), nn.Parameter(torch.zeros(1))
        self.mean = torch.zeros(5)

    def forward(self, inputs: torch.Tensor, update_mean: bool) -> torch.Tensor:
        if update_mean:
            self.mean = 0.5 * self.mean + 0.5 * inputs.mean(0)
        return (inputs - self.mean) @ self.kernel + self.bias


class Workload:
    step_hint = STEP_HINT

    def __init__(self) -> None:
        self.logged: list = []
        self.metrics_logger = SimpleNamespace(append_scalar_metrics=lambda *row: self.logged.append(row))

    def model_fn(self, model, batch, model_state, mode, rng, update_batch_norm, dropout_rate=0.1):
        return model(batch["inputs"], update_batch_norm), None

    def loss_fn(self, label_batch, logits_batch, mask_batch=None, label_smoothing=0.0):
        each = (logits_batch[:, 0] - (1 - label_smoothing) * label_batch) ** 2
        return {"summed": each.sum(), "n_valid_examples": torch.tensor(len(each))}


class TorchRun(Run):
    """The same run in PyTorch."""

    def __init__(self, name: str, kernel: np.ndarray, **hyperparameters) -> None:
        self.submission = importlib.import_module(f"submissions.pytorch.{name}.submission")
        self.hyperparameters = point(**hyperparameters)
        self.workload, self.params, self.model_state, self.step = Workload(), Model(kernel), None, 0
        self.state = self.submission.init_optimizer_state(self.workload, self.params, None, self.hyperparameters, None)

    def batch(self):
        return {name: torch.from_numpy(value) for name, value in super().batch().items()}

    def kernel(self):
        return self.params.kernel.detach().numpy().copy()


def both(name, **settings):
    there = Run(name, **settings)
    return there, TorchRun(name, there.kernel(), **settings)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("nadamw", {}),
        ("nadamw", {"grad_clip": 0.5, "label_smoothing": 0.2, "dropout_rate": 0.3}),
        ("lawa", LAWA),
        ("adamw_ema", EMA),
        ("nadamw_wsd", {"final_lr_factor": 0.1}),
        ("ema_growing_inverse_sqrt", {"averaging_share": 0.3}),
        ("ema_follows_rate", {"averaging_share": 0.3, "averaging_interval": 2}),
    ],
)
def test_a_submission_trains_evaluates_and_logs_as_its_twin(name, settings):
    """The learning rate's sign and size, decay, clipping and smoothing: all that the recipes do around an optimizer."""
    there, here = both(name, **settings, learning_rate=0.05)
    first = there.kernel()
    for _ in range(4):
        for run in (there, here):
            run.update(3)
        np.testing.assert_allclose(there.kernel(), here.kernel(), rtol=1e-4, atol=1e-5)
        for run in (there, here):
            run.prepare()
        np.testing.assert_allclose(there.kernel(), here.kernel(), rtol=1e-4, atol=1e-5)
    assert np.abs(there.kernel() - first).max() > 0.1
    for (mine, step), (others, other_step) in zip(there.workload.logged, here.workload.logged, strict=True):
        assert step == other_step
        assert mine == pytest.approx(others, rel=1e-4)


def test_training_lowers_the_loss():
    for run in both("nadamw", learning_rate=0.05, weight_decay=0.0):
        run.update(1)
        run.workload.logged.clear()
        same = run.batch()
        run.batch = lambda same=same: same
        run.update(30)
        losses = [metrics["loss"] for metrics, _ in run.workload.logged]
        assert losses[-1] < 0.5 * losses[0]


def test_logged_is_at_each_of_the_first_hundred_updates_and_then_every_five_hundredth():
    """As the official baselines do; logs are compared by step."""
    for run in both("nadamw"):
        for first in (0, 98, 499, 999, 1250):
            run.step = first
            run.update(4)
        assert [step for _, step in run.workload.logged] == [0, 1, 2, 3, 98, 99, 100, 500, 1000]
