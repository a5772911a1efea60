"""examples/torchtitan_averaging.py: with a trainer that has what it uses of torchtitan's, and with the real optimizers.

torchtitan's own trainer imports Triton kernels, and does not run on a CPU.
"""

import os
import runpy
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn

from tests.support import ROOT, reference
from tests.support.warm_python import python

SAVED, LAST = 4, 7


def test_the_example_averages_validates_and_resumes(tmp_path):
    if not dist.is_available() or torch.__version__.startswith("2.5."):
        pytest.skip("FSDP2 does not run on a CPU in this torch")
    command = [python(), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, "-m", "tests.weight_averaging.trainers.test_torchtitan", str(tmp_path)],
        capture_output=True, text=True, cwd=ROOT, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert done.stdout.count("as expected") == 2


@pytest.mark.trainers
def test_the_optimizers_of_torchtitan_call_the_hook_of_the_example_after_each_step(monkeypatch):
    optimizer = pytest.importorskip("torchtitan.components.optimizer", reason="torchtitan is not installed")
    monkeypatch.setitem(sys.modules, "torchtitan.trainer", types.SimpleNamespace(Trainer=object))
    example = runpy.run_path(str(ROOT / "examples/torchtitan_averaging.py"))
    from weight_averaging import LAWA

    parts = [nn.Linear(2, 2), nn.Linear(2, 1)]
    parts[1].weight.requires_grad_(True)
    whole = nn.ModuleList(parts)
    trainer = types.SimpleNamespace(
        optimizers=optimizer.default_adamw(lr=0.1).build(model_parts=[whole]),
        checkpointer=types.SimpleNamespace(states={}),
        step=0,
    )
    lawa = LAWA([whole], interval=1, window=2)
    example["attach"](trainer, lawa)
    seen = []
    for _ in range(3):
        trainer.step += 1
        whole[1](whole[0](torch.ones(1, 2))).sum().backward()
        trainer.optimizers.step()
        trainer.optimizers.zero_grad()
        seen.append(np.concatenate([p.detach().clone().numpy().ravel() for p in whole.parameters()]))
    assert lawa.snapshot_steps == [2, 3]
    with lawa.averaged():
        found = np.concatenate([p.detach().numpy().ravel() for p in whole.parameters()])
    np.testing.assert_allclose(found, reference.lawa(seen, 2), atol=1e-6)


class Validator:
    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def validate(self, model_parts: list, step: int) -> None:
        self.seen.append(full(model_parts))


class Trainer:
    """Of torchtitan's trainer what the example touches, in its order: build, load, train, save, validate."""

    def __init__(self, config: int) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        torch.manual_seed(config)
        model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
        if dist.get_world_size() > 1:
            fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
        self.model_parts, self.step, self.validator = [model], 0, Validator()
        self.optimizers = torch.optim.SGD(model.parameters(), 0.3)
        self.parallel_dims = types.SimpleNamespace(get_optional_mesh=lambda name: None)
        self.checkpointer = types.SimpleNamespace(states={"model": model})
        self.weights: list[np.ndarray] = []

    def train(self, last: int, folder: str, load: bool) -> None:
        if load:
            dcp.load(self.checkpointer.states, checkpoint_id=folder)
            self.step = SAVED
        while self.step < last:
            self.step += 1
            x = torch.randn(4, 3, generator=torch.Generator().manual_seed(self.step))
            self.model_parts[0](x).square().mean().backward()
            self.optimizers.step()
            self.optimizers.zero_grad()
            self.weights.append(full(self.model_parts))
            if self.step == SAVED and not load:
                dcp.save(self.checkpointer.states, checkpoint_id=folder)
            self.validator.validate(self.model_parts, self.step)


def full(parts: list) -> np.ndarray:
    tensors = [p.detach() for part in parts for p in part.parameters()]
    return np.concatenate(
        [(t.full_tensor() if hasattr(t, "full_tensor") else t).clone().numpy().ravel() for t in tensors]
    )


def main(folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    sys.modules["torchtitan.trainer"] = types.SimpleNamespace(Trainer=Trainer)  # type: ignore[assignment]
    import weight_averaging

    made = weight_averaging.LAWA
    weight_averaging.LAWA = lambda model, **options: made(model, **{**options, "interval": 2, "window": 2})
    averaging = runpy.run_path(str(ROOT / "examples/torchtitan_averaging.py"))["AveragingTrainer"]
    whole = averaging(0)
    whole.train(LAST, folder, load=False)
    for step, seen in enumerate(whole.validator.seen, 1):
        snapshots = whole.weights[1:step:2]
        expected = reference.lawa(snapshots, 2) if len(snapshots) > 1 else whole.weights[step - 1]
        np.testing.assert_allclose(seen, expected, atol=1e-6)
    np.testing.assert_array_equal(full(whole.model_parts), whole.weights[-1])
    again = averaging(1)
    again.train(LAST, folder, load=True)
    np.testing.assert_array_equal(again.weights, whole.weights[SAVED:])
    np.testing.assert_array_equal(again.validator.seen, whole.validator.seen[SAVED:])
    dist.barrier()
    print("as expected", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
