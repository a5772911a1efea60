"""The stand-in for `algoperf.pytorch_utils`: this process among those that torchrun started, if it did."""

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from weight_averaging.errors import UsageError


def pytorch_setup() -> tuple[bool, int, torch.device, int]:
    """Whether DistributedDataParallel is in use, this process's rank, its device, the number of ranks.

    The miniature workloads leave the device alone and stay on the CPU.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    rank, ranks = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    return "LOCAL_RANK" in os.environ, rank, device, ranks


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """The ranks that torchrun started are connected within, over NCCL for tensors on GPUs and gloo for those on CPUs.

    Raises:
        UsageError: fewer GPUs than ranks.
    """
    use_ddp, _, device, _ = pytorch_setup()
    if not use_ddp:
        yield
        return
    if device.type == "cuda":
        ranks, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if ranks > gpus:
            hint = "CUDA_VISIBLE_DEVICES= runs on the CPU"
            raise UsageError(f"--nproc_per_node={ranks}: there are {gpus} GPUs, and a rank needs one ({hint})")
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def bare(model: nn.Module) -> nn.Module:
    """The model itself, out of torch.compile and DistributedDataParallel, with the names of its own."""
    model = getattr(model, "_orig_mod", model)
    return model.module if isinstance(model, DistributedDataParallel) else model


def in_ranks(model: nn.Module) -> nn.Module:
    """The model in DistributedDataParallel, if there are ranks; all of them must call it together."""
    if not (dist.is_available() and dist.is_initialized()):
        return model
    device = next(model.parameters()).device
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
