"""Parameters that are frozen, left out for that, and change all the same: a teacher that follows the student, say."""

import torch
from torch import Tensor, nn

from weight_averaging.torch.model.selection import FROZEN, Selected, all_entries, check_possible, is_packed
from weight_averaging.torch.model.tensors import local, real


class FrozenProbe:
    """One element of each frozen parameter, to see whether they stay as they are."""

    def __init__(self) -> None:
        self._seen: dict[str, float] | None = None

    def begin(self, model: nn.Module, selected: Selected) -> None:
        """Remember what they hold, once."""
        if self._seen is None:
            self._seen = _elements(model, selected)

    def changed(self, model: nn.Module, selected: Selected) -> list[str]:
        """The names of those that hold something else now than at `begin`."""
        if not self._seen:
            return []
        now = _elements(model, selected)
        # Of a NaN, which is unlike itself, nothing is said.
        return [n for n, value in now.items() if n in self._seen and value == value and value != self._seen[n]]


def _elements(model: nn.Module, selected: Selected) -> dict[str, float]:
    """By name. One wait for the device; what cannot be read (on meta, packed, sparse) is passed over."""
    names = set(selected.left_out.get(FROZEN, ()))
    found: dict[str, Tensor] = {}
    for entry in all_entries(model) if names else ():
        tensor = entry.tensor()
        if entry.name in names and tensor is not None and not is_packed(tensor):
            try:
                check_possible(entry.name, tensor)
            except (TypeError, ValueError):
                continue
            flat = real(local(tensor.detach())).reshape(-1)
            if flat.numel():
                found[entry.name] = flat[flat.numel() // 2].to(torch.float32)
    if not found:
        return {}
    device = next(iter(found.values())).device
    return dict(zip(found, torch.stack([value.to(device) for value in found.values()]).tolist()))
