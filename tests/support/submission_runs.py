"""A submission run as the runners do, in either framework, on a small model."""

from collections import namedtuple

import numpy as np
import torch

from miniperf import spec
from tests.support.jax_runs import Regression


class TorchRegression:
    """The model of `Regression` in PyTorch."""

    step_hint, loss_type, model_params_types = Regression.step_hint, None, None
    metrics_logger = None

    def init_model_fn(self, rng):
        del rng
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 1)), None

    def model_fn(self, params, batch, model_state, mode, rng, update_batch_norm, dropout_rate=0.1):
        params.train(mode is spec.ForwardPassMode.TRAIN)
        return params(batch["inputs"]), None

    def loss_fn(self, label_batch, logits_batch, mask_batch=None, label_smoothing=0.0):
        each = (logits_batch[:, 0] - label_batch) ** 2
        return {"summed": each.sum(), "n_valid_examples": torch.tensor(float(len(each))), "per_example": each}


class Run:
    """As the runners call a submission, in either framework."""

    def __init__(self, submission, framework, hyperparameters, params=None):
        self.submission, self.framework = submission, framework
        self.workload = Regression() if framework == "jax" else TorchRegression()
        if framework == "jax":
            import jax

            self.key = jax.random.PRNGKey
        else:
            self.key = lambda step: torch.tensor([step, step])
        self.params, self.model_state = self.workload.init_model_fn(self.key(0))
        self.hyperparameters = namedtuple("H", hyperparameters)(**hyperparameters) if hyperparameters else None
        self.state = submission.init_optimizer_state(
            self.workload, self.params, self.model_state, self.hyperparameters, self.key(0)
        )
        self.step = 0

    def common(self):
        return {
            "workload": self.workload, "current_param_container": self.params, "current_params_types": None,
            "model_state": self.model_state, "hyperparameters": self.hyperparameters, "loss_type": None,
            "optimizer_state": self.state, "eval_results": [], "global_step": self.step, "rng": self.key(self.step),
        }  # fmt: skip

    def update(self, count=1):
        for _ in range(count):
            rng = np.random.RandomState(self.step)
            batch = {"inputs": rng.randn(8, 5).astype(np.float32), "targets": rng.randn(8).astype(np.float32)}
            if self.framework == "pytorch":
                batch = {name: torch.from_numpy(value) for name, value in batch.items()}
            chosen = self.submission.data_selection(
                self.workload, iter([batch]), self.state, self.params, self.model_state, self.hyperparameters, 0, None
            )
            self.state, self.params, self.model_state = self.submission.update_params(batch=chosen, **self.common())
            self.step += 1
        return self

    def prepare(self):
        self.state, self.params, self.model_state = self.submission.prepare_for_eval(**self.common())
        return self

    def weights(self):
        """All weights, and statistics of batch norm, as one vector of copies."""
        if self.framework == "pytorch":
            tensors = [tensor.double() for tensor in self.params.state_dict().values()]
            return torch.cat([tensor.reshape(-1) for tensor in tensors]).numpy().copy()
        import jax

        leaves = jax.tree.leaves((self.params, self.model_state))
        return np.concatenate([np.array(leaf, np.float64).reshape(-1) for leaf in leaves])
