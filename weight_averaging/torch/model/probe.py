"""Whether something has written into a model's parameters, told by a few elements of each."""

import torch
from torch import Tensor

from weight_averaging.torch.model.weights import LiveWeights

ELEMENTS = 8  # of each tensor: what merges or swaps weights changes nearly all of them


class Probe:
    """Some elements of each averaged parameter as they are now.

    Version counters would tell too much, since a layer may merge weights and take them out again, and too little, since
    writes to `.data` do not count. Costs a look at each tensor and one operation for each type.
    """

    def __init__(self, weights: LiveWeights) -> None:
        self._values, self._layout = _elements(weights), _layout(weights)

    def changed(self, weights: LiveWeights) -> str:
        """The name of a parameter that has changed by more than rounding; empty if none has. One wait for the device.

        Of a model whose tensors have another type, shape, layout or device by now nothing is told.
        """
        if self._layout != _layout(weights):
            return ""
        now = _elements(weights)
        for (names, eps, after), (_, _, before) in zip(now, self._values, strict=True):
            scale = torch.maximum(before.abs(), after.abs()) + before.abs().mean()
            far = (after - before).abs() > 8 * eps * scale
            far |= before.isnan() != after.isnan()
            if bool(far.any()):
                return names[int(far.nonzero()[0])]
        return ""


def _layout(weights: LiveWeights) -> list[object]:
    if any(entry.tensor() is None for entry in weights.entries):
        return []
    return [(t.dtype, t.shape, t.is_contiguous(), t.device) for t in weights.tensors()]


def _elements(weights: LiveWeights) -> list[tuple[list[str], float, Tensor]]:
    """By type of the tensors: for each element the name of its tensor; the type's rounding; the elements."""
    found: dict[torch.dtype, tuple[list[str], list[Tensor]]] = {}
    for entry, tensor in zip(weights.entries, weights.tensors(), strict=True):
        if entry.is_buffer or not tensor.numel():
            continue
        flat = tensor if tensor.is_contiguous() else tensor.select(0, 0)
        flat = flat.reshape(-1)
        some = flat[:: max(1, flat.numel() // ELEMENTS)][:ELEMENTS]
        names, values = found.setdefault(some.dtype, ([], []))
        names += [entry.name] * some.numel()
        values.append(some)
    return [
        (names, torch.finfo(dtype).eps, torch.cat([v.to(values[0].device) for v in values]).to(torch.float32))
        for dtype, (names, values) in found.items()
    ]
