"""A submission in JAX run as the official runner does, on a small model."""

import importlib
from collections import namedtuple
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

STEP_HINT = 100
POINT = {"learning_rate": 1e-3, "one_minus_beta1": 0.1, "beta2": 0.99, "weight_decay": 0.1, "warmup_factor": 0.02}
LAWA = {"averaging_interval": 2, "averaging_window": 3}
EMA = {"averaging_interval": 2, "averaging_decay": 0.5}


def point(**changes):
    values = {**POINT, **changes}
    return namedtuple("H", values)(**values)


class Regression:
    """A linear model behind a batch norm. It returns statistics in another container and shape, as official ones do."""

    step_hint, loss_type, model_params_types = STEP_HINT, None, None

    def __init__(self):
        self.logged = []
        self.metrics_logger = SimpleNamespace(append_scalar_metrics=lambda *row: self.logged.append(row))

    def init_model_fn(self, rng):
        params = {"kernel": jax.random.normal(rng, (5, 1)), "bias": jnp.zeros(1)}
        return params, {"batch_stats": {"mean": jnp.zeros(5)}}

    def model_fn(self, params, batch, model_state, mode, rng, update_batch_norm, dropout_rate=0.1):
        mean = model_state["batch_stats"]["mean"]
        if update_batch_norm:
            mean = 0.5 * mean + 0.5 * batch["inputs"].mean(0, keepdims=True)
        return (batch["inputs"] - mean) @ params["kernel"] + params["bias"], FrozenDict({"batch_stats": {"mean": mean}})

    def loss_fn(self, label_batch, logits_batch, mask_batch=None, label_smoothing=0.0):
        each = (logits_batch[:, 0] - (1 - label_smoothing) * label_batch) ** 2
        mask = jnp.ones(len(each)) if mask_batch is None else mask_batch
        return {"summed": (each * mask).sum(), "n_valid_examples": mask.sum(), "per_example": each}


class Run:
    """As `submission_runner.train_once` calls a submission."""

    def __init__(self, name="lawa", workload=None, **hyperparameters):
        self.submission = importlib.import_module(f"submissions.jax.{name}.submission")
        self.hyperparameters = point(**hyperparameters)
        self.workload = workload or Regression()
        self.params, self.model_state = self.workload.init_model_fn(jax.random.PRNGKey(0))
        self.state = self.submission.init_optimizer_state(
            self.workload, self.params, self.model_state, self.hyperparameters, None
        )
        self.step = 0

    def common(self):
        return {
            "workload": self.workload, "current_param_container": self.params, "current_params_types": None,
            "model_state": self.model_state, "hyperparameters": self.hyperparameters, "loss_type": None,
            "optimizer_state": self.state, "eval_results": [], "global_step": self.step,
            "rng": jax.random.PRNGKey(self.step),
        }  # fmt: skip

    def update(self, count=1):
        for _ in range(count):
            self.state, self.params, self.model_state = self.submission.update_params(
                batch=self.batch(), **self.common()
            )
            self.step += 1
        return self

    def batch(self):
        rng = np.random.RandomState(self.step)
        return {"inputs": rng.randn(8, 5).astype(np.float32), "targets": rng.randn(8).astype(np.float32)}

    def prepare(self):
        self.state, self.params, self.model_state = self.submission.prepare_for_eval(**self.common())
        return self

    def kernel(self):
        return np.array(self.params["kernel"])  # a copy: the next update takes the memory

    def mean(self):
        return np.array(self.model_state["batch_stats"]["mean"]).reshape(-1)
