"""Two processes (or four) under Lightning, over gloo; `-m tests.processes.lightning_ranks FOLDER STRATEGY ...`."""

import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.fsdp
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy, SingleDeviceStrategy

from tests.weight_averaging.trainers.test_lightning import Module, Recorder, flat, trainer_of
from weight_averaging.torch import LAWA
from weight_averaging.torch.model.tensors import whole
from weight_averaging.trainers.lightning import AveragedCheckpoint, WeightAveraging


class Checking(Recorder):
    """That evaluations see the average, on every rank; in the processes themselves, also spawned ones."""

    def on_fit_end(self, trainer, pl_module):
        np.testing.assert_array_equal(flat(pl_module), self.snapshots[-1])
        seen = [(step, weights) for step, weights in pl_module.evaluated if step >= 6]
        assert len(seen) == 3, [step for step, _ in pl_module.evaluated]
        first = [self.snapshots]
        dist.broadcast_object_list(first)  # batch-norm statistics are those of the first rank
        for step, weights in seen:
            expected = np.mean([np.asarray(w) for w in first[0][1:step:2][-3:]], axis=0)
            np.testing.assert_allclose(weights, expected, atol=1e-6)
        everywhere = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, [np.asarray(weights).tobytes() for _, weights in seen])
        assert len({tuple(values) for values in everywhere}) == 1


def replicas(module: torch.nn.Module) -> LAWA:
    """One window for both: the process group is there by now."""
    return LAWA(module, interval=2, window=3, process_group=dist.group.WORLD)


class Sharded(Module):
    def configure_model(self):
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if not isinstance(self.net, FSDPModule):
            self.net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


class TensorParallel(Module):
    """Shards of tensor parallelism, and over those of FSDP2 where the mesh has both."""

    def configure_model(self):
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        if not hasattr(self.net[0].weight, "device_mesh"):
            self.net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
            parallelize_module(
                self.net, self.device_mesh["tensor_parallel"], {"0": ColwiseParallel(), "2": RowwiseParallel()}
            )
            if self.device_mesh["data_parallel"].size() > 1:
                fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


def full(module: torch.nn.Module) -> torch.Tensor:
    tensors = [p.detach() for p in module.parameters()]  # whole ones where FSDP has left them gathered
    return torch.cat([whole(tensor).double().reshape(-1) for tensor in tensors])


def sharded(folder: Path, module: type[Module], data: int, tensor: int) -> None:
    """Args: `data` and `tensor` are the lengths of the mesh."""

    def trainer(*callbacks, **settings):
        strategy = ModelParallelStrategy(
            data_parallel_size=data,
            tensor_parallel_size=tensor,
            save_distributed_checkpoint=settings.pop("distributed"),
        )
        settings |= {"devices": data * tensor, "use_distributed_sampler": False}
        return trainer_of(folder, *callbacks, strategy=strategy, **settings)

    import tests.weight_averaging.trainers.test_lightning

    tests.weight_averaging.trainers.test_lightning.flat = full
    make = partial(LAWA, interval=2, window=3)
    for distributed in (True, False):
        name = f"sharded_{distributed}"
        saving = ModelCheckpoint(folder / name, every_n_train_steps=12, filename="{step}", save_top_k=-1)
        recorder, averaging, whole = Recorder(), WeightAveraging(make), module()
        trainer(recorder, averaging, saving, distributed=distributed).fit(whole)
        step, weights = whole.evaluated[-1]
        expected = np.mean([np.asarray(w) for w in recorder.snapshots[1:step:2][-3:]], axis=0)
        np.testing.assert_allclose(weights, expected, atol=1e-6)
        np.testing.assert_array_equal(full(whole), recorder.snapshots[-1])

        again, restored = module(), WeightAveraging(make)
        run = trainer(restored, distributed=distributed)
        run.fit(again, ckpt_path=folder / name / "step=12.ckpt")
        np.testing.assert_array_equal(full(again), full(whole))
        with averaging.averaged(), restored.averaged():
            np.testing.assert_array_equal(full(again), full(whole))


def replicated(folder: Path, strategy: str) -> None:
    saving = ModelCheckpoint(folder, save_last=True)
    best = AveragedCheckpoint(dirpath=folder / "average", filename="last", enable_version_counter=False)
    callbacks = (Checking(), WeightAveraging(replicas), saving, best)
    trainer_of(folder, *callbacks, strategy=strategy, devices=2, max_epochs=3, num_sanity_val_steps=0).fit(Module())
    averaged, tested = Module.load_from_checkpoint(folder / "average" / "last.ckpt"), Module()
    if not dist.is_initialized() or dist.get_rank() == 0:  # in one process, from what two have saved
        one = trainer_of(folder, WeightAveraging(partial(LAWA, interval=2, window=3)), strategy=SingleDeviceStrategy())
        one.test(tested, ckpt_path=folder / "last.ckpt", verbose=False)
        np.testing.assert_array_equal(tested.evaluated[-1][1], flat(averaged))


def recomputed(folder: Path) -> None:
    """Each rank has its own batches; the statistics are the same on both."""
    averaging = WeightAveraging(
        partial(LAWA, interval=2, window=3, buffers="recompute"), forward=lambda module, batch: module.net(batch[0])
    )
    module = Module()
    trainer_of(folder, averaging, strategy="ddp", devices=2).fit(module)
    everywhere = [None] * dist.get_world_size()
    with averaging.averaged() as ready:  # a pass of DDP would hand out those of the first rank
        assert ready
        dist.all_gather_object(everywhere, flat(module).tobytes())
    assert everywhere[0] == everywhere[1]


SHARDED = {"fsdp2": (Sharded, 2, 1), "tensor": (TensorParallel, 1, 2), "fsdp2_tensor": (TensorParallel, 2, 2)}


def main(folder: Path, strategies: list[str]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for strategy in strategies:
        if strategy in SHARDED:
            if hasattr(torch.distributed.fsdp, "fully_shard"):  # torch 2.5 does not run it on a CPU
                sharded(folder / strategy, *SHARDED[strategy])
        else:
            replicated(folder / strategy, {"ddp": "ddp", "spawn": "ddp_spawn"}[strategy])
        if strategy == "ddp":
            recomputed(folder / "recomputed")
    print("as expected")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
