"""Drives a submission through the official API with made-up batches; run by test_official.py.

python tests/official_driver.py lawa mnist
"""

import hashlib
import importlib
import resource
import sys
import tempfile
import threading
import time
from collections import namedtuple
from typing import Any

import torch
from absl import flags

flags.DEFINE_string("framework", "pytorch", "")  # algoperf's random keys read it
flags.FLAGS(sys.argv[:1])
if "+cpu" in torch.__version__:
    # torchvision's usual build looks for these operators, which it registers only beside a CUDA build of torch.
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from algoperf import checkpoint_utils, spec  # noqa: E402
from algoperf.workloads.workloads import BASE_WORKLOADS_DIR, WORKLOADS, import_workload  # noqa: E402

from tests.official_batches import batch  # noqa: E402

HYPERPARAMETERS = {
    "learning_rate": 1e-3, "one_minus_beta1": 0.1, "beta2": 0.99, "weight_decay": 0.1, "warmup_factor": 0.0,
}  # fmt: skip
AVERAGING = {
    "lawa": {"averaging_interval": 1, "averaging_window": 2},
    "ema": {"averaging_interval": 1, "averaging_decay": 0.5},
}
EXAMPLES = {"mnist": 8, "ogbg": 8, "criteo1tb_test": 8}  # elsewhere 2
CHEAP = tuple(EXAMPLES)


def make_workload(name: str) -> Any:
    entry = WORKLOADS[name]
    path = f"{BASE_WORKLOADS_DIR}{entry['workload_path']}_pytorch/workload.py"
    options = {"use_specaug": False} if name.startswith("librispeech") else {}
    return import_workload(path, entry["workload_class_name"], workload_init_kwargs=options)


class Run:
    """One training run, as `submission_runner.train_once` calls a submission."""

    def __init__(self, submission: str, workload: str, rank: int = 0) -> None:
        module = submission if "." in submission else f"submissions.pytorch.{submission}.submission"
        self.submission = importlib.import_module(module)
        kind = module.split(".")[-2].removesuffix("_no_decay")
        values = {**HYPERPARAMETERS, **AVERAGING.get(kind, {})}
        self.hyperparameters = namedtuple("Hyperparameters", values)(**values)
        self.name, self.rank = workload, rank
        self.workload = make_workload(workload)
        self.model, self.model_state = self.workload.init_model_fn([0, 1])
        self.state = self.submission.init_optimizer_state(
            self.workload, self.model, self.model_state, self.hyperparameters, [0, 2]
        )
        self.step = 0

    def common(self) -> dict[str, Any]:
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
        queue = iter([batch(self.name, [self.step, self.rank], EXAMPLES.get(self.name, 2))])
        torch.manual_seed(self.step)  # the official models draw dropout from the global generator
        selected = self.submission.data_selection(
            self.workload, queue, self.state, self.model, self.model_state, self.hyperparameters, self.step, [0, 4]
        )
        self.state, self.model, self.model_state = self.submission.update_params(batch=selected, **self.common())
        self.step += 1

    def prepare(self) -> None:
        self.state, self.model, self.model_state = self.submission.prepare_for_eval(**self.common())

    def fingerprint(self) -> str:
        """Of all parameters, which must be finite."""
        digest = hashlib.blake2b(digest_size=16)
        for name, parameter in self.model.named_parameters():
            assert torch.isfinite(parameter).all(), f"{name} is not finite"
            digest.update(parameter.detach().numpy())
        return digest.hexdigest()

    def save(self, folder: str) -> None:
        checkpoint_utils.save_checkpoint(
            "pytorch", self.state, self.model, self.model_state, {}, [], self.step, 0, folder, False
        )

    def restore(self, folder: str) -> None:
        self.state, self.model, self.model_state, _, _, self.step, _ = checkpoint_utils.maybe_restore_checkpoint(
            "pytorch", self.state, self.model, self.model_state, {}, [], 0, 0, folder
        )


def trajectory(submission: str, workload: str, steps: int) -> list[str]:
    """The weights of a run that is never evaluated, after 0, 1, ..., `steps` updates."""
    run = Run(submission, workload)
    fingerprints = [run.fingerprint()]
    for _ in range(steps):
        run.update()
        fingerprints.append(run.fingerprint())
    return fingerprints


def check(submission: str, workload: str) -> None:
    cheap = workload in CHEAP
    steps = 6 if cheap else 3
    raw = trajectory(submission, workload, steps + 1 if cheap else steps)
    assert len(set(raw)) == len(raw), "the weights do not move"
    run = Run(submission, workload)
    threads = threading.active_count()
    for step in range(1, steps + 1):
        run.update()
        assert run.fingerprint() == raw[step], "an evaluation changed training"
        if step in (1, 2, 4, 6):
            run.prepare()
            prepared = run.fingerprint()
            run.prepare()
            assert run.fingerprint() == prepared, "a second preparation changed the weights"
            averager = run.state.get("averager")
            due = averager is not None and averager.ready and step > 1  # the mean of one snapshot is the weights
            assert (prepared != raw[step]) == due, "raw weights where an average is due, or the reverse"
    assert threading.active_count() == threads, "something goes on in a thread when prepare_for_eval has returned"
    if cheap:  # through a checkpoint that the harness writes with the average in the model
        with tempfile.TemporaryDirectory() as folder:
            run.save(folder)
            resumed = Run(submission, workload)
            resumed.restore(folder)
        resumed.update()
        assert resumed.fingerprint() == raw[steps + 1], "a resumed run differs"


def main(submission: str, workload: str) -> None:
    api = importlib.import_module("submissions.api")
    assert api.PACKAGE == "algoperf"
    assert api.spec is spec
    torch.set_num_threads(1)
    started = time.monotonic()
    check(submission, workload)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{workload} {submission}: {time.monotonic() - started:.1f} s, peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
