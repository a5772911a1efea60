"""DeepSpeed's ZeRO-1 and -2 on two ranks of a CPU, over gloo; started by test_with_real_packages.py."""

import os
import sys
import tempfile
import weakref

import numpy as np
import torch
import torch.distributed as dist

os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed
from deepspeed.utils import safe_get_full_fp32_param
from torch import nn

from tests.support import reference
from tests.support.small_models import saved
from weight_averaging.cli.costs import Machine, Run, cost
from weight_averaging.torch import EMA, LAWA, collector

UPDATES = 6


def engine_of(stage: int) -> tuple:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "zero_optimization": {"stage": stage},
        "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
    }
    engine, optimizer, _, _ = deepspeed.initialize(model=model, config=config, model_parameters=model.parameters())
    return engine, optimizer


def exact(engine: nn.Module) -> np.ndarray:
    masters = [safe_get_full_fp32_param(parameter) for parameter in engine.parameters()]
    return torch.cat([master.double().reshape(-1) for master in masters]).numpy()


def weights(engine: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in engine.parameters()])


def train(engine: nn.Module, averagers: list, steps: range) -> list[np.ndarray]:
    seen = []
    for step in steps:
        generator = torch.Generator().manual_seed(10 * step + dist.get_rank())
        loss = engine(torch.randn(4, 16, generator=generator).bfloat16()).float().square().mean()
        engine.backward(loss)
        engine.step()
        seen.append(exact(engine))
        assert all(averager.update(step) for averager in averagers)
    return seen


def make(engine: nn.Module, optimizer: object) -> list:
    return [
        LAWA(engine.module, interval=1, window=4, masters=optimizer),
        EMA(engine.module, decay=0.7, masters=safe_get_full_fp32_param),
        LAWA(engine.module, interval=1, window=4, masters=optimizer, process_group=dist.group.WORLD),
    ]


def check(stage: int) -> None:
    engine, optimizer = engine_of(stage)
    averagers = make(engine, optimizer)
    seen = train(engine, averagers, range(1, UPDATES + 1))
    raw = weights(engine)
    values = [reference.lawa(seen, 4), reference.ema(seen, 0.7), reference.lawa(seen, 4)]
    for averager, value in zip(averagers, values, strict=True):
        with averager.averaged():
            differ = weights(engine) != torch.from_numpy(value).float().bfloat16()
            assert differ.float().mean() < 1e-2, differ.float().mean()  # rounded once, but for ties
            np.testing.assert_allclose(weights(engine).double().numpy(), value, rtol=2**-8, atol=1e-8)
        assert torch.equal(weights(engine), raw)
        assert averager.average_state_dict().keys() == engine.module.state_dict().keys()
    for vector in averagers[0]._tracks[0].vectors()[-1:]:
        np.testing.assert_array_equal(vector.double().numpy(), seen[-1])  # the masters, bit for bit

    folder = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folder)
    engine.save_checkpoint(folder[0], tag="now")
    states = [saved(averager) for averager in averagers]
    dist.broadcast_object_list(states)  # as of the first rank, whose window is for both
    after = train(engine, averagers, range(UPDATES + 1, UPDATES + 4))

    other, again = engine_of(stage)
    resumed = make(other, again)
    other.load_checkpoint(folder[0], tag="now")
    for averager, state in zip(resumed, states, strict=True):
        averager.load_state_dict(state)
    np.testing.assert_array_equal(train(other, resumed, range(UPDATES + 1, UPDATES + 4)), after)
    for averager, restored in zip(averagers, resumed, strict=True):
        with averager.averaged(), restored.averaged():
            assert torch.equal(weights(engine), weights(other))


def gathered(stage: int) -> None:
    """Bytes that a snapshot and a swap reduce over the ranks, and those of masters held at once, are `plan`'s."""
    engine, optimizer = engine_of(stage)
    collector.defers = lambda device: True  # as on an accelerator
    averagers = {
        "lawa": LAWA(engine.module, interval=1, window=2, masters=optimizer),
        "ema": EMA(engine.module, decay=0.7, masters=optimizer),
    }
    train(engine, list(averagers.values()), range(1, 3))
    reduced, held, most = 0, 0, 0
    inner, get = deepspeed.comm.all_reduce, deepspeed.utils.safe_get_full_fp32_param

    def all_reduce(tensor: torch.Tensor, *args: object, **kwargs: object) -> object:
        nonlocal reduced
        reduced += tensor.numel() * tensor.element_size()
        return inner(tensor, *args, **kwargs)

    def kept(parameter: torch.Tensor) -> torch.Tensor:
        nonlocal held, most
        master = get(parameter)
        size = 4 * master.numel()
        held, most = held + size, max(most, held + size)
        weakref.finalize(master.untyped_storage() if hasattr(master, "untyped_storage") else master, drop, size)
        return master

    def drop(size: int) -> None:
        nonlocal held
        held -= size

    deepspeed.comm.all_reduce, deepspeed.utils.safe_get_full_fp32_param = all_reduce, kept
    params = sum(parameter.numel() for parameter in engine.parameters())
    run, ranks = Run(params=params, dtype_bytes=2, ranks=2, zero=stage), dist.get_world_size()
    for kind, averager in averagers.items():
        paper = cost(kind, "device", run, Machine())
        reduced = most = 0
        averager.update(3)
        passed = reduced * 2 * (ranks - 1) / ranks  # by an all-reduce, of each rank
        reduced = 0
        averager.swap_in()
        averager.swap_out()
        assert passed == paper.gathered, (kind, passed, paper)
        assert reduced == most == run.gathered, (kind, reduced, most, run.gathered)
    deepspeed.comm.all_reduce, deepspeed.utils.safe_get_full_fp32_param = inner, get


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # which compiles for minutes, and gloo does as well
    deepspeed.init_distributed("gloo")
    for argument in sys.argv[1:]:
        *name, stage = argument.split(":")
        (gathered if name else check)(int(stage))
    dist.barrier()
    print("as expected", flush=True)
    dist.destroy_process_group()
