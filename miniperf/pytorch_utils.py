"""The stand-in for `algoperf.pytorch_utils`: one process, on the CPU."""

import os

import torch


def pytorch_setup() -> tuple[bool, int, torch.device, int]:
    """Whether DistributedDataParallel is in use, this process's rank, its device, the number of devices."""
    if "LOCAL_RANK" in os.environ:
        raise SystemExit("miniperf runs in one process, on the CPU: start it without torchrun")
    return False, 0, torch.device("cpu"), 0
