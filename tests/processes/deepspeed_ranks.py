"""DeepSpeed's ZeRO-1, -2 and -3 on two ranks of a CPU, over gloo; started by test_with_real_packages.py."""

import os
import sys
import tempfile
import weakref

import numpy as np
import pytest
import torch
import torch.distributed as dist

os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed
from deepspeed.utils import safe_get_full_fp32_param, safe_get_local_fp32_param
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


def pieces(stage: int) -> None:
    """ZeRO-3: the engine's module is refused; the pieces of the float32 masters are averaged by themselves."""
    engine, optimizer = engine_of(stage)
    with pytest.raises(ValueError, match="a placeholder of DeepSpeed's ZeRO-3"):
        LAWA(engine.module, interval=1, window=3, masters=optimizer)
    here = dict(engine.module.named_parameters())
    held = nn.ParameterDict({name.replace(".", "_"): safe_get_local_fp32_param(p) for name, p in here.items()})
    lawa = LAWA(held, interval=1, window=3, model_parallel_group=dist.group.WORLD)
    seen = train(engine, [lawa], range(1, UPDATES + 1))
    averages = lawa.average_state_dict()
    found = []
    for name, parameter in here.items():
        parts = [torch.empty_like(averages[name.replace(".", "_")]) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, averages[name.replace(".", "_")])
        found.append(torch.cat(parts)[: parameter.ds_numel])
    np.testing.assert_allclose(torch.cat(found).double().numpy(), reference.lawa(seen, 3), rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(exact(engine), seen[-1])


def hugging_face(stage: int) -> None:
    """Under Hugging Face's Trainer evaluations see the average of the masters, and a run resumes bit for bit.

    ZeRO-3 is refused as training begins.
    """
    from transformers import TrainerCallback

    from tests.weight_averaging.trainers.test_transformers import flat, tiny, trainer_of
    from weight_averaging.trainers.transformers import WeightAveraging

    snapshots: list[np.ndarray] = []

    class Recorder(TrainerCallback):
        def on_optimizer_step(self, args, state, control, model, **_):
            snapshots.append(exact(model))

    config = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "zero_optimization": {"stage": stage},
        "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "torch_adam": True}},
    }
    settings = {"ddp_backend": "gloo", "per_device_train_batch_size": 1, "deepspeed": config, "bf16": True}
    folder = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folder)

    def attached(trainer) -> WeightAveraging:
        kind = WeightAveraging(lambda model: LAWA(model, interval=2, window=3, masters=trainer.optimizer))
        return kind.attach(trainer)

    whole = trainer_of(folder[0], Recorder(), **settings)
    averaging = attached(whole)
    if stage == 3:
        with pytest.raises(ValueError, match="a placeholder of DeepSpeed's ZeRO-3"):
            whole.train()
        return
    whole.train()
    seen = dict(whole.evaluated)
    for step in (8, 12):
        expected = reference.lawa(snapshots[1:step:2], 3)
        np.testing.assert_allclose(seen[step], expected, rtol=2**-8, atol=1e-8)
    rounded = torch.from_numpy(snapshots[-1]).float().bfloat16()
    np.testing.assert_array_equal(flat(whole.model), rounded.double().numpy())

    again = trainer_of(folder[0], model=tiny(seed=5), **settings)
    restored = attached(again)
    again.train(resume_from_checkpoint=f"{folder[0]}/checkpoint-8")
    np.testing.assert_array_equal(flat(again.model), flat(whole.model))
    np.testing.assert_array_equal(dict(again.evaluated)[12], seen[12])
    with averaging.averaged(), restored.averaged():
        np.testing.assert_array_equal(flat(again.model), flat(whole.model))
        assert restored.averager.swapped


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
        {"": check, "gathered": gathered, "pieces": pieces, "hugging_face": hugging_face}["".join(name)](int(stage))
    dist.barrier()
    print("as expected", flush=True)
    dist.destroy_process_group()
