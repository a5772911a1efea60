"""Drives a submission through the official API on mnist with made-up batches; run by test_official.py.

python tests/official_driver.py lawa
"""

import copy
import importlib
import sys
from collections import namedtuple

import torch
from absl import flags

flags.DEFINE_string("framework", "pytorch", "")  # algoperf's random keys read it
flags.FLAGS(sys.argv[:1])

from algoperf import spec  # noqa: E402
from algoperf.workloads.mnist.mnist_pytorch.workload import MnistWorkload  # noqa: E402

HYPERPARAMETERS = {
    "learning_rate": 1e-2, "one_minus_beta1": 0.1, "beta2": 0.99, "weight_decay": 0.1, "warmup_factor": 0.0,
}  # fmt: skip
AVERAGING = {"lawa": {"averaging_interval": 1, "averaging_window": 2}}
AVERAGING["ema"] = {"averaging_interval": 1, "averaging_decay": 0.5}


class Run:
    """One training run, as `submission_runner.train_once` calls a submission."""

    def __init__(self, name: str) -> None:
        self.submission = importlib.import_module(f"submissions.pytorch.{name}.submission")
        values = {**HYPERPARAMETERS, **AVERAGING.get(name.removesuffix("_no_decay"), {})}
        self.hyperparameters = namedtuple("Hyperparameters", values)(**values)
        self.workload = MnistWorkload()
        self.model, self.model_state = self.workload.init_model_fn([0, 1])
        self.state = self.submission.init_optimizer_state(
            self.workload, self.model, self.model_state, self.hyperparameters, [0, 2]
        )
        self.step = 0

    def common(self) -> dict:
        return {
            "workload": self.workload,
            "current_param_container": self.model,
            "current_params_types": self.workload.model_params_types,
            "model_state": self.model_state,
            "hyperparameters": self.hyperparameters,
            "loss_type": self.workload.loss_type,
            "optimizer_state": self.state,
            "eval_results": [],
            "global_step": self.step,
            "rng": [0, 3],
        }

    def update(self) -> None:
        generator = torch.Generator().manual_seed(self.step)
        batch = {
            "inputs": torch.randn(8, 1, 28, 28, generator=generator),
            "targets": torch.randint(0, 10, (8,), generator=generator),
            "weights": torch.ones(8),
        }
        queue = iter([batch])
        batch = self.submission.data_selection(
            self.workload, queue, self.state, self.model, self.model_state, self.hyperparameters, self.step, [0, 4]
        )
        self.state, self.model, self.model_state = self.submission.update_params(batch=batch, **self.common())
        self.step += 1

    def prepare(self) -> None:
        self.state, self.model, self.model_state = self.submission.prepare_for_eval(**self.common())

    def weights(self) -> torch.Tensor:
        return torch.cat([p.detach().reshape(-1).clone() for p in self.model.parameters()])


def main(name: str) -> None:
    api = importlib.import_module("submissions.api")
    assert api.PACKAGE == "algoperf"
    assert api.spec is spec
    assert Run(name).submission.get_batch_size("mnist") == 16
    quiet, evaluated = Run(name), Run(name)
    previous = quiet.weights()
    for step in range(1, 7):
        quiet.update()
        evaluated.update()
        raw = quiet.weights()
        assert torch.isfinite(raw).all()
        assert not torch.equal(raw, previous), "the weights do not move"
        assert torch.equal(evaluated.weights(), raw), "an evaluation changed training"
        if step in (1, 3, 4):
            evaluated.prepare()
            once = evaluated.weights()
            evaluated.prepare()
            assert torch.equal(evaluated.weights(), once), "a second preparation changed the weights"
            ready = "averager" in evaluated.state and evaluated.state["averager"].ready
            assert torch.equal(once, raw) != (ready and step > 1), "raw weights where an average is due, or the reverse"
        previous = raw
    # Through a checkpoint written with the average in the model, restored as the harness restores it.
    evaluated.prepare()
    saved = copy.deepcopy({key: value.state_dict() for key, value in evaluated.state.items()})
    resumed = Run(name)
    resumed.model.load_state_dict(evaluated.model.state_dict())
    for key in resumed.state:
        resumed.state[key].load_state_dict(saved[key])
    resumed.step = evaluated.step
    for run in (quiet, resumed):
        run.update()
    assert torch.equal(resumed.weights(), quiet.weights()), "a resumed run differs"
    print("ok")


if __name__ == "__main__":
    main(sys.argv[1])
