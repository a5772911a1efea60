"""Parameters that are frozen, left out for that, and change all the same: a teacher that follows the student, say."""

import torch
from torch import Tensor, nn

from weight_averaging.torch.selection import FROZEN, Selected, all_entries
from weight_averaging.torch.tensors import local


class FrozenProbe:
    """One element of each frozen parameter, to see whether they stay as they are."""

    def __init__(self) -> None:
        self._seen: dict[str, Tensor] | None = None

    def begin(self, model: nn.Module, selected: Selected) -> None:
        """Remember what they hold, once."""
        if self._seen is None:
            self._seen = self._elements(model, selected)

    def changed(self, model: nn.Module, selected: Selected) -> list[str]:
        """The names of those that hold something else now than at `begin`."""
        now = self._elements(model, selected) if self._seen else {}
        both = [name for name in now if self._seen and name in self._seen]
        if not both:
            return []
        assert self._seen is not None
        same = torch.stack([torch.isclose(self._seen[n], now[n], 0.0, 0.0, equal_nan=True) for n in both]).tolist()
        return [name for name, equal in zip(both, same) if not equal]

    @staticmethod
    def _elements(model: nn.Module, selected: Selected) -> dict[str, Tensor]:
        names = set(selected.left_out.get(FROZEN, ()))
        tensors = {entry.name: entry.tensor() for _, entry in all_entries(model) if entry.name in names}
        values = {name: local(tensor.detach()).reshape(-1) for name, tensor in tensors.items() if tensor is not None}
        return {name: flat[flat.numel() // 2].to("cpu", torch.float64) for name, flat in values.items() if flat.numel()}
