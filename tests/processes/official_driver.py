"""Drives a submission through the official API with made-up batches; run by test_official.py.

python tests/processes/official_driver.py lawa mnist
python tests/processes/official_driver.py lawa mnist --framework=jax
"""

import hashlib
import importlib
import resource
import sys
import tempfile
import threading
import time
from collections import namedtuple
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from absl import flags

from launching.rehearsal import on_cpu

FLAGS = flags.FLAGS
flags.DEFINE_enum("framework", "pytorch", ["pytorch", "jax"], "")  # algoperf's random keys read it
ARGUMENTS = FLAGS(sys.argv if sys.argv[0].endswith("official_driver.py") else sys.argv[:1])
on_cpu.declare_torchvision_operators()

from algoperf import checkpoint_utils, random_utils, spec  # noqa: E402
from algoperf.workloads.workloads import BASE_WORKLOADS_DIR, WORKLOADS, import_workload  # noqa: E402

from tests.processes.official_batches import as_jax, batch  # noqa: E402
from tests.support import reference  # noqa: E402

HYPERPARAMETERS = {
    "learning_rate": 1e-3, "one_minus_beta1": 0.1, "beta2": 0.99, "weight_decay": 0.1, "warmup_factor": 0.0,
}  # fmt: skip
OWN = {"ademamix": {"beta3": 0.999, "alpha": 5.0}}  # of base optimizers
AVERAGING = {
    "lawa": {"averaging_interval": 1, "averaging_window": 2},
    "ema": {"averaging_interval": 1, "averaging_decay": 0.5},
}
EXAMPLES = {"mnist": 8, "ogbg": 8, "criteo1tb_test": 8}  # elsewhere 2
CHEAP = tuple(EXAMPLES)
TOO_LARGE_TO_COPY = "criteo1tb"


class Run:
    """One training run in PyTorch, as `submission_runner.train_once` calls a submission."""

    framework = "pytorch"

    def __init__(self, submission: str, workload: str, rank: int = 0) -> None:
        module = submission if "." in submission else f"submissions.{self.framework}.{submission}.submission"
        self.submission = importlib.import_module(module)
        words = module.split(".")[-2].split("_")
        self.kind = next((word for word in words if word in AVERAGING), "none")
        values = {**HYPERPARAMETERS, **AVERAGING.get(self.kind, {}), **OWN.get(words[0], {})}
        self.hyperparameters = None if words[-1] == "self" else namedtuple("Hyperparameters", values)(**values)
        self.name, self.rank = workload, rank
        self.workload = self.make_workload(workload)
        self.model, self.model_state = self.workload.init_model_fn(self.key(1))
        self.state = self.submission.init_optimizer_state(
            self.workload, self.model, self.model_state, self.hyperparameters, self.key(2)
        )
        self.step = 0

    @classmethod
    def make_workload(cls, name: str) -> Any:
        entry = WORKLOADS[name]
        path = f"{BASE_WORKLOADS_DIR}{entry['workload_path']}_{cls.framework}/workload.py"
        options = {"use_specaug": False} if name.startswith("librispeech") else {}
        return import_workload(path, entry["workload_class_name"], workload_init_kwargs=options)

    def key(self, number: int) -> Any:
        return [0, number]

    def batch(self) -> dict[str, Any]:
        torch.manual_seed(self.step)  # the official models draw dropout from the global generator
        return batch(self.name, [self.step, self.rank], EXAMPLES.get(self.name, 2))

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
            "rng": self.key(3 + self.step),
        }

    def update(self) -> None:
        queue = iter([self.batch()])
        selected = self.submission.data_selection(
            self.workload, queue, self.state, self.model, self.model_state, self.hyperparameters, self.step, [0, 4]
        )
        self.state, self.model, self.model_state = self.submission.update_params(batch=selected, **self.common())
        self.step += 1

    def prepare(self) -> None:
        self.state, self.model, self.model_state = self.submission.prepare_for_eval(**self.common())

    def weights(self) -> list[np.ndarray]:
        """All parameters, and the batch-norm statistics; not to be kept beyond the next update."""
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        return [tensor.detach().numpy() for tensor in tensors.values() if tensor.is_floating_point()]

    def fingerprint(self) -> str:
        """Of the weights, which must be finite."""
        digest = hashlib.blake2b(digest_size=16)
        for array in self.weights():
            assert np.isfinite(array).all()
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()

    @property
    def ready(self) -> bool:
        averager = self.state.get("averager")
        return averager is not None and averager.ready

    def save(self, folder: str) -> None:
        checkpoint_utils.save_checkpoint(
            self.framework, self.state, self.model, self.model_state, {}, [], self.step, 0, folder, False
        )

    def restore(self, folder: str) -> None:
        self.state, self.model, self.model_state, _, _, self.step, _ = checkpoint_utils.maybe_restore_checkpoint(
            self.framework, self.state, self.model, self.model_state, {}, [], 0, 0, folder
        )


class JaxRun(Run):
    """One training run in JAX."""

    framework = "jax"

    def key(self, number: int) -> Any:
        return random_utils.PRNGKey(number)

    def batch(self) -> dict[str, Any]:
        import jax

        count = max(EXAMPLES.get(self.name, 2), jax.device_count())
        return as_jax(self.name, batch(self.name, [self.step, self.rank], count))

    def weights(self) -> list[np.ndarray]:
        import jax

        return [np.asarray(leaf) for leaf in jax.tree.leaves((self.model, self.model_state))]

    @property
    def ready(self) -> bool:
        state, trial = self.state
        return trial.averager is not None and trial.averager.ready(state)

    def save(self, folder: str) -> None:
        import flax

        # As `scripts.run` has it by an environment variable: what flax saves by Orbax upstream cannot restore.
        flax.config.update("flax_use_orbax_checkpointing", False)
        super().save(folder)

    def restore(self, folder: str) -> None:
        dimensions = self.weights()[0].ndim
        super().restore(folder)
        assert self.weights()[0].ndim == dimensions + 1, "upstream restores well now: drop resuming.py"


RUNS = {"pytorch": Run, "jax": JaxRun}


def expected_average(kind: str, history: Sequence[list[np.ndarray]]) -> list[np.ndarray]:
    """What an evaluation should see, from the raw weights after every update so far."""
    if kind == "lawa":
        averages = [reference.lawa(snapshots, AVERAGING["lawa"]["averaging_window"]) for snapshots in zip(*history)]
    else:
        averages = [reference.ema(snapshots, AVERAGING["ema"]["averaging_decay"]) for snapshots in zip(*history)]
    return [average for average in averages if average is not None]


def trajectory(make: type[Run], submission: str, workload: str, steps: int) -> list[str]:
    """The weights of a run that is never evaluated, after 0, 1, ..., `steps` updates."""
    run = make(submission, workload)
    fingerprints = [run.fingerprint()]
    for _ in range(steps):
        run.update()
        fingerprints.append(run.fingerprint())
    return fingerprints


def check(make: type[Run], submission: str, workload: str) -> None:
    cheap = workload in CHEAP
    steps = 6 if cheap else 3
    raw = trajectory(make, submission, workload, steps + 1 if cheap else steps)
    still = 1 if submission.startswith("soap") else 0  # it spends the first gradient on its eigenbases
    assert len(set(raw)) == len(raw) - still, "the weights do not move"
    run = make(submission, workload)
    threads = threading.active_count()
    history: list[list[np.ndarray]] = []
    for step in range(1, steps + 1):
        run.update()
        assert run.fingerprint() == raw[step], "an evaluation changed training"
        if workload != TOO_LARGE_TO_COPY:
            history.append([array.copy() for array in run.weights()])
        if step in (1, 2, 4, 6):
            run.prepare()
            prepared = run.fingerprint()
            if run.ready and history:
                for found, expected in zip(run.weights(), expected_average(run.kind, history), strict=True):
                    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
            run.prepare()
            assert run.fingerprint() == prepared, "a second preparation changed the weights"
            due = run.ready and step > 1  # the mean of one snapshot is the weights
            assert (prepared != raw[step]) == due, "raw weights where an average is due, or the reverse"
    # JAX keeps threads of its own, and waits for nothing else.
    assert run.framework == "jax" or threading.active_count() == threads, "a thread goes on after prepare_for_eval"
    if cheap:  # through a checkpoint that the harness writes with the average in the model
        with tempfile.TemporaryDirectory() as folder:
            run.save(folder)
            resumed = make(submission, workload)
            resumed.restore(folder)
        resumed.update()
        assert resumed.fingerprint() == raw[steps + 1], "a resumed run differs"


def check_own_average(make: type[Run], submission: str, workload: str) -> None:
    """Of an optimizer that brings an average of its own, and puts it in and out by arithmetic: to a rounding error."""
    never, run = make(submission, workload), make(submission, workload)
    for step in range(1, 7):
        never.update()
        run.update()
        for mine, theirs in zip(run.weights(), never.weights(), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5, err_msg="an evaluation changed training")
        if step in (1, 2, 4, 6):
            raw = run.fingerprint()
            run.prepare()
            prepared = run.fingerprint()
            assert (prepared != raw) == (step > 1), "raw weights where an average is due, or the reverse"
            run.prepare()
            assert run.fingerprint() == prepared, "a second preparation changed the weights"
    with tempfile.TemporaryDirectory() as folder:
        run.save(folder)
        resumed = make(submission, workload)
        resumed.restore(folder)
    run.update()
    resumed.update()
    assert resumed.fingerprint() == run.fingerprint(), "a resumed run differs"


def main(submission: str, workload: str) -> None:
    api = importlib.import_module("submissions.api")
    assert api.PACKAGE == "algoperf"
    assert api.spec is spec
    torch.set_num_threads(1)
    started = time.monotonic()
    (check_own_average if submission.startswith("schedule_free") else check)(
        RUNS[FLAGS.framework], submission, workload
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{workload} {submission}: {time.monotonic() - started:.1f} s, peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    main(*ARGUMENTS[1:])
