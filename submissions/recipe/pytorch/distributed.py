"""DistributedDataParallel: how the harness has set it up, and where it lost it."""

import importlib

import torch
import torch.distributed as dist
from absl import logging
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...api import PACKAGE

USE_PYTORCH_DDP, _, DEVICE, _ = importlib.import_module(f"{PACKAGE}.pytorch_utils").pytorch_setup()


def in_ddp(model: nn.Module, device: torch.device) -> nn.Module:
    """`model`, wrapped in DDP unless it already is or there is one rank only; all ranks must call it together.

    After a resume the official harness hands back the bare module of a model that it had wrapped and not compiled.
    Nothing would synchronise the gradients any more, and the ranks would drift apart in silence.

    Args:
        model: holds the same raw weights on every rank.
        device: where this rank's model is.
    """
    inner = getattr(model, "_orig_mod", model)  # torch.compile goes around DDP
    if isinstance(inner, DistributedDataParallel) or dist.get_world_size() == 1:
        return model
    logging.warning("the model came back without DistributedDataParallel, as after a resume: wrapping it again")
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
