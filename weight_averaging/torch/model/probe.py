"""Whether something has written into a model's parameters, told by a few elements of each."""

import torch
from torch import Tensor, nn

from weight_averaging.torch.model.selection import all_entries
from weight_averaging.torch.model.weights import LiveWeights

ELEMENTS = 8  # of each tensor: what merges or swaps weights changes nearly all of them


class Probe:
    """Some elements of each averaged parameter as they are now.

    Version counters would tell too much, since a layer may merge weights and take them out again. They would tell too
    little, since writes to `.data` do not count. What a forward pass writes by itself is passed over. Costs a look at
    each tensor and one operation for each type.
    """

    def __init__(self, weights: LiveWeights) -> None:
        self._layout, self._values = _elements(weights)

    def changed(self, weights: LiveWeights) -> str:
        """The name of a parameter that has changed by more than rounding; empty if none has. One wait for the device.

        Of a model whose tensors have another type, shape, layout or device by now nothing is told.
        """
        if any(entry.tensor() is None for entry in weights.entries):
            return ""
        layout, values = _elements(weights)
        if layout != self._layout:
            return ""
        for dtype, (names, after) in values.items():
            before = self._values[dtype][1]
            if torch.equal(before, after):
                continue
            scale = torch.maximum(before.abs(), after.abs()) + before.abs().mean()
            far = (after - before).abs() > 8 * torch.finfo(dtype).eps * scale
            far |= before.isnan() != after.isnan()
            if bool(far.any()):
                return names[int(far.nonzero()[0])]
        return ""


def replaced(model: nn.Module, weights: LiveWeights) -> str:
    """The name of a tensor whose layer the model has no longer, nor the tensor elsewhere; empty if all are there."""
    if not weights.has_changed():
        return ""
    there = {id(entry.tensor()) for entry in all_entries(model)}
    return next((entry.name for entry in weights.entries if id(entry.tensor()) not in there), "")


def _elements(weights: LiveWeights) -> tuple[list[object], dict[torch.dtype, tuple[list[str], Tensor]]]:
    """How the tensors are laid out; and by type, for each element the name of its tensor, and the elements."""
    layout: list[object] = []
    found: dict[torch.dtype, tuple[list[str], list[Tensor]]] = {}
    passed_over = weights.written_by_passes()
    for entry, tensor in zip(weights.entries, weights.tensors(), strict=True):
        whole = tensor.is_contiguous()
        layout.append((tensor.dtype, tensor.shape, whole, tensor.device))
        numel = tensor.numel()
        if entry.is_buffer or not numel or id(entry.tensor()) in passed_over:
            continue
        flat = tensor.view(-1) if whole else tensor.select(0, 0).reshape(-1)
        some = flat if numel <= ELEMENTS else flat[:: max(1, flat.numel() // ELEMENTS)][:ELEMENTS]
        names, values = found.setdefault(tensor.dtype, ([], []))
        names += [entry.name] * some.numel()
        values.append(some)
    joined = {
        dtype: (names, torch.cat([v.to(values[0].device) for v in values]).to(torch.float32))
        for dtype, (names, values) in found.items()
    }
    return layout, joined
