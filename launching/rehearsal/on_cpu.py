"""What the harness takes for granted on GPUs, replaced in this process so that its queues and runner work on a CPU.

To be called before any workload is imported.
"""

import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

_kept: list[Any] = []


def declare_torchvision_operators() -> None:
    """torchvision's usual build looks for these, which it registers only beside a CUDA build of torch."""
    if "+cpu" in torch.__version__ and not _kept:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)


def replace_device_count() -> None:
    """Queues divide the batch by the number of GPUs, which is 0."""
    from algoperf import pytorch_utils

    pytorch_utils.pytorch_setup = lambda: (False, 0, torch.device("cpu"), 1)


def replace_cuda_between_ranks() -> None:
    """With several ranks it hard-codes NCCL and CUDA: gloo, and a rank for a GPU."""
    rank, world_size = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
    os.environ["JAX_NUM_CPU_DEVICES"] = str(world_size)
    from algoperf import pytorch_utils

    pytorch_utils.pytorch_setup = lambda: (True, rank, torch.device("cpu"), world_size)
    torch.cuda.set_device = lambda device: None
    torch.cuda.synchronize = lambda device=None: None
    init_process_group, init_ddp = dist.init_process_group, DistributedDataParallel.__init__
    dist.init_process_group = lambda *_: init_process_group("gloo")

    def init(self: Any, module: Any, device_ids: Any = None, output_device: Any = None) -> None:
        init_ddp(self, module)

    DistributedDataParallel.__init__ = init  # type: ignore[assignment,method-assign]


def replace_prefetching() -> None:
    """ImageNet's images go through a CUDA stream."""
    from algoperf import data_utils

    class OnCpu:
        def __init__(self, dataloader: Any, device: Any, start_epoch: int = 0) -> None:
            self.dataloader = dataloader

        def __len__(self) -> int:
            return len(self.dataloader)

        def __iter__(self) -> Iterator[Any]:
            return ((inputs.float(), targets) for inputs, targets in self.dataloader)

    data_utils.PrefetchedWrapper = OnCpu


def replace_all() -> None:
    declare_torchvision_operators()
    if "LOCAL_RANK" in os.environ:
        replace_cuda_between_ranks()
    else:
        replace_device_count()
    replace_prefetching()
