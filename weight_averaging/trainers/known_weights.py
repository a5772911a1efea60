"""Whose average it is: the weights that a run of training was left with, to know them again."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weight_averaging.torch import Averager
from weight_averaging.torch.load_guard import checksums
from weight_averaging.torch.model.tensors import local, plain_tensors, real

ELEMENTS = 8  # of each parameter


class KnownWeights:
    """The averaged parameters of a model as they are now, told by one read of each.

    They are known by checksums, bit for bit. Two things round weights and change nothing else. One is a module that
    merges them in `eval()` and takes them apart again, which has a `train` of its own. The other is another type of
    numbers. There (for a module and what is directly in it) `ELEMENTS` of each parameter are compared. What a pass
    writes by itself does not count: buffers (batch-norm statistics), embeddings with a `max_norm`.
    """

    def __init__(self, averager: Averager) -> None:
        self._seen = _look(averager)

    def changed(self, averager: Averager) -> str:
        """The name of a parameter that is not what it was; empty if none is. Of an average of several ranks collective.

        What the model has got or lost since does not count, unless nothing is left of what it was.
        """
        now = _look(averager)
        both = [name for name, seen in now.items() if name in self._seen and self._seen[name].shape == seen.shape]
        differing = next((name for name in both if _differ(self._seen[name], now[name])), "")
        if not both and self._seen:
            differing = next(iter(self._seen))
        same = averager._ranks.all_agree(not differing, averager._weights.device)
        return "" if same else differing or "a parameter on another rank"


@dataclass(frozen=True)
class _Seen:
    shape: torch.Size
    dtype: torch.dtype
    checksum: int
    some: Tensor
    rounds: bool  # whether its module may round it


@plain_tensors
def _look(averager: Averager) -> dict[str, _Seen]:
    look = averager._weights.preview(set())
    own = [module for module in averager._model.modules() if type(module).train is not nn.Module.train]
    rounding = {id(part) for module in own for part in (module, *module.children())}
    pairs = zip(look.selected.entries, look.found, strict=True)
    passed_over = averager._weights.written_by_passes()
    live = [
        (entry, real(local(tensor.detach())))
        for entry, tensor in pairs
        if not entry.is_buffer and id(entry.tensor()) not in passed_over
    ]
    sums = checksums([tensor for _, tensor in live])
    return {
        entry.name: _Seen(tensor.shape, tensor.dtype, total, _some(tensor), id(entry.module) in rounding)
        for (entry, tensor), total in zip(live, sums, strict=True)
    }


def _some(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(-1)
    return flat[:: max(1, flat.numel() // ELEMENTS)][:ELEMENTS].to("cpu", torch.float32, copy=True)


def _differ(before: _Seen, now: _Seen) -> bool:
    if before.dtype == now.dtype and (before.checksum == now.checksum or not now.rounds):
        return before.checksum != now.checksum
    if not now.some.numel():
        return False
    eps = max(torch.finfo(before.dtype).eps, torch.finfo(now.dtype).eps)
    scale = torch.maximum(before.some.abs(), now.some.abs()) + before.some.abs().mean()
    far = (now.some - before.some).abs() > 8 * eps * scale
    return bool((far | (now.some.isnan() != before.some.isnan())).any())
