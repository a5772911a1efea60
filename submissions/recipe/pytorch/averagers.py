"""The averagers of the submissions in PyTorch."""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import nn

from weight_averaging.torch import EMA, LAWA, Averager

from ..averaging import Averaging

AVERAGERS: dict[str, Callable[..., Averager]] = {"lawa": LAWA, "ema": EMA}


def averager_of(averaging: Averaging, model: nn.Module, hyperparameters: Any, step_hint: int) -> Averager:
    """The averager of this rank: replicas share one window, held by the rank whose state the harness saves."""
    group = dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
    arguments = averaging.arguments(hyperparameters, step_hint)
    return AVERAGERS[averaging.name](model, **arguments, process_group=group)
