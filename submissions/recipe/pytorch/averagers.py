"""The averagers of the submissions in PyTorch."""

from typing import Any

import torch.distributed as dist
from torch import nn

from weight_averaging.torch import Averager

from ..averaging import Averaging, buffers_of


def averager_of(averaging: Averaging, model: nn.Module, hyperparameters: Any, step_hint: int) -> Averager:
    """The averager of this rank: replicas share one window, held by the rank whose state the harness saves."""
    group = dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
    average = averaging.describe(hyperparameters, step_hint)
    return Averager(model, average, buffers=buffers_of(hyperparameters), process_group=group)
