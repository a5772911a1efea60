"""Modules around the plain model: what wraps one, and one that holds several stages of it."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from weight_averaging.tensor_names import WRAPPERS


class Stages(nn.Module):
    """Parts of one model on one rank, as an interleaved pipeline has them, under the names of the whole model.

    Args:
        stages: each with modules that are called as in the whole model, as in `layers.17`; also wrapped.
    Raises:
        TypeError: one is no module.
    """

    def __init__(self, stages: Iterable[Any]) -> None:
        super().__init__()
        for number, stage in enumerate(stages):
            if not isinstance(stage, nn.Module):
                raise TypeError(
                    "an averager takes the torch.nn.Module itself, or several as stages of one model, not "
                    f"{type(stage).__name__} among them"
                )
            self.add_module(str(number), stage)


def as_module(model: Any) -> Any:
    """A list of stages as one module; anything else as it is."""
    if isinstance(model, list | tuple) and any(isinstance(stage, nn.Module) for stage in model):
        return Stages(model)
    return model


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DDP and torch.compile, in any nesting."""
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif inner := [model._modules[key] for key in sorted(WRAPPERS.intersection(model._modules.keys()))]:
            assert inner[0] is not None
            model = inner[0]
        else:
            return model


def live_state(model: nn.Module) -> dict[str, Any]:
    """The state dict of the plain model, of its own tensors.

    Raises:
        ValueError: several stages have other tensors of one name.
    """
    merged: dict[str, Any] = {}
    for stage in model.children() if isinstance(model, Stages) else [model]:
        for name, value in unwrapped(stage).state_dict(keep_vars=True).items():
            first = merged.setdefault(name, value)
            if isinstance(value, Tensor) and not _same(value, first):
                raise ValueError(
                    f"two stages have different tensors called {name}, so that no state dict can have both: give the "
                    "modules of each stage the names of the whole model's"
                )
    return merged


def _same(one: Tensor, other: Any) -> bool:
    """Whether two tensors hold the same; those that are spread over ranks are not compared."""
    if one is other or hasattr(one, "device_mesh"):
        return True
    return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other.to(one.device))
