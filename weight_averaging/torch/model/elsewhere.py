"""What a rank has to know of those that hold other tensors of its model (pipeline stages, experts)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from weight_averaging.torch.model.ranks import gathered, together
from weight_averaging.torch.model.selection import all_entries


@dataclass(frozen=True)
class Elsewhere:
    """Of all ranks of a group together.

    Attributes:
        names: of all their tensors, averaged or not.
        device_type: on which they are; a rank without one takes part from there.
    """

    names: list[str]
    device_type: str

    @property
    def device(self) -> torch.device:
        """This rank's of that type."""
        if self.device_type == "cpu":
            return torch.device("cpu")
        return torch.device(self.device_type, torch.get_device_module(self.device_type).current_device())


def elsewhere(model: nn.Module, group: Any) -> Elsewhere | None:
    """None without a group: this rank has the whole model. Collective.

    Raises:
        TypeError: `model` is none; a RuntimeError on the other ranks.
    """
    if group is None:
        return None
    entries = together(group, lambda: list(all_entries(model)))
    types = [tensor.device.type for entry in entries if (tensor := entry.tensor()) is not None]
    told = gathered(group, ([entry.name for entry in entries], next((t for t in types if t != "meta"), None)))
    type_ = next((one for _, one in told if one is not None), "cpu")
    return Elsewhere([name for names, _ in told for name in names], type_)
