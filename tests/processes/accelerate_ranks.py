"""accelerate's own loop on ranks of a CPU, over gloo: `-m tests.processes.accelerate_ranks FOLDER HOW...`.

HOW is `fsdp2:FULL_STATE_DICT`, `fsdp2:SHARDED_STATE_DICT`, `zero:1`, `zero:2` or `zero:3`, on four
ranks `hsdp:` and either of the first.
"""

import itertools
import os
import sys
from collections.abc import Callable

import accelerate.state
import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator, DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from torch import nn

from tests.support import reference
from weight_averaging.torch import EMA, LAWA
from weight_averaging.trainers.shards import InOneFile

UPDATES, SAVED, ACCUMULATE = 8, 5, 2


def claim_an_accelerator(kind: DistributedType = DistributedType.MULTI_GPU) -> None:
    """accelerate shards models only where it finds an accelerator: from here on it believes in one."""
    begin = accelerate.state.PartialState.__init__

    def begun(self, cpu: bool = False, **kwargs):
        begin(self, cpu=True, **kwargs)
        if self._shared_state["distributed_type"] == DistributedType.MULTI_CPU:
            self._shared_state["distributed_type"] = kind

    accelerate.state.PartialState.__init__ = begun


def full(model: nn.Module) -> np.ndarray:
    tensors = [p.detach() for p in model.parameters()]
    whole = [(t.full_tensor() if hasattr(t, "full_tensor") else t).clone() for t in tensors]
    return torch.cat([tensor.double().reshape(-1) for tensor in whole]).numpy()


def masters(model: nn.Module) -> np.ndarray:
    from deepspeed.utils import safe_get_full_fp32_param

    return torch.cat([safe_get_full_fp32_param(p).double().reshape(-1) for p in model.parameters()]).numpy()


class Loop:
    """The loop of docs/trainers.md, of a model that begins with weights of its own; `seen` are those of each update."""

    def __init__(self, seed: int, averagers: Callable, weights: Callable, options: dict) -> None:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))
        rows = 2 * int(os.environ["WORLD_SIZE"]) * ACCUMULATE * UPDATES
        x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(0))
        batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x[:, :3].sin()), batch_size=2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(gradient_accumulation_steps=ACCUMULATE, **options)
        self.model, self.optimizer, self.batches = self.accelerator.prepare(model, optimizer, batches)
        self.averagers, self.weights = averagers(self.model, self.optimizer), weights
        for averager in self.averagers:
            sharded = self.accelerator.distributed_type == DistributedType.FSDP
            self.accelerator.register_for_checkpointing(InOneFile(averager) if sharded else averager)
        self.seen: list[np.ndarray] = []

    def train(self, begun: int, folder: str = "") -> None:
        updates, type_ = begun, next(self.model.parameters()).dtype
        for x, y in itertools.islice(self.batches, begun * ACCUMULATE, None):
            with self.accelerator.accumulate(self.model):
                self.accelerator.backward(nn.functional.mse_loss(self.model(x.to(type_)).float(), y))
                self.optimizer.step()
                self.optimizer.zero_grad()
            if self.accelerator.sync_gradients and not self.accelerator.optimizer_step_was_skipped:
                updates += 1
                self.seen.append(self.weights(self.model))
                assert all(averager.update(updates) for averager in self.averagers)
                if folder and updates == SAVED:
                    self.accelerator.save_state(folder)
        assert updates == UPDATES

    def averages(self) -> list[np.ndarray]:
        raw, result = full(self.model), []
        for averager in self.averagers:
            with averager.averaged() as ready:
                assert ready
                result.append(full(self.model))
            np.testing.assert_array_equal(full(self.model), raw)
        return result


def check(averagers: Callable, weights: Callable, options: Callable, folder: str, tolerance: float) -> Loop:
    """Averages are those of the weights in float64; a run from a checkpoint goes on bit for bit."""
    whole = Loop(0, averagers, weights, options())
    whole.train(0, folder)
    expected = [reference.lawa(whole.seen, 3), reference.ema(whole.seen, 0.7)]
    for found, value in zip(whole.averages(), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=tolerance, atol=1e-7)
    again = Loop(5, averagers, weights, options())
    assert not np.array_equal(full(again.model), full(whole.model))
    again.accelerator.load_state(folder)
    np.testing.assert_array_equal(again.weights(again.model), whole.seen[SAVED - 1])
    again.train(SAVED)
    np.testing.assert_array_equal(again.seen, whole.seen[SAVED:])
    np.testing.assert_array_equal(again.averages(), whole.averages())
    return whole


def fsdp2(folder: str, kind: str, **further: object) -> Loop:
    def averagers(model: nn.Module, _: object) -> list:
        return [LAWA(model, interval=1, window=3), EMA(model, decay=0.7)]

    def options() -> dict:
        words = {"auto_wrap_policy": "size_based_wrap", "min_num_params": 10}
        return {"fsdp_plugin": FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type=kind, **words), **further}

    claim_an_accelerator()
    whole = check(averagers, full, options, folder, 1e-6)
    assert whole.accelerator.is_fsdp2
    assert all(hasattr(parameter, "device_mesh") for parameter in whole.model.parameters())
    return whole


def hsdp(folder: str, kind: str) -> None:
    """Two replicas of two shards each."""
    from accelerate.parallelism_config import ParallelismConfig  # which older releases have not

    whole = fsdp2(folder, kind, parallelism_config=ParallelismConfig(dp_replicate_size=2, dp_shard_size=2))
    assert next(whole.model.parameters()).device_mesh.ndim == 2


def zero(folder: str, stage: str) -> None:
    import deepspeed

    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # which compiles for minutes; gloo does as well
    deepspeed.init_distributed("gloo")
    claim_an_accelerator(DistributedType.DEEPSPEED)

    def averagers(model: nn.Module, optimizer: object) -> list:
        options = {"masters": optimizer, "process_group": dist.group.WORLD}
        return [LAWA(model.module, interval=1, window=3, **options), EMA(model.module, decay=0.7, **options)]

    def options() -> dict:
        config = {
            "train_micro_batch_size_per_gpu": 2,
            "gradient_accumulation_steps": ACCUMULATE,
            "zero_optimization": {"stage": int(stage)},
            "bf16": {"enabled": True},
            "zero_allow_untested_optimizer": True,
        }
        return {"deepspeed_plugin": DeepSpeedPlugin(hf_ds_config=config), "mixed_precision": "bf16"}

    if stage == "3":
        with pytest.raises(ValueError, match="a placeholder of DeepSpeed's ZeRO-3"):
            Loop(0, averagers, masters, options())
    else:
        whole = check(averagers, masters, options, folder, 2**-8)
        assert whole.accelerator.distributed_type == DistributedType.DEEPSPEED


if __name__ == "__main__":
    torch.set_num_threads(1)
    for argument in sys.argv[2:]:
        name, _, word = argument.partition(":")
        {"fsdp2": fsdp2, "hsdp": hsdp, "zero": zero}[name](f"{sys.argv[1]}/{name}_{word}", word)
    dist.barrier()
    print("as expected", flush=True)
    dist.destroy_process_group()
