"""What has happened to the tensors of a model between two looks at it.

The rule: a tensor keeps its place under its name if it has the same shape, whatever its type, layout and device are
now. Under a new name it does so if it is the same parameter. Every other one is new, also what a parametrisation makes
of a parameter. What is not there any more is dropped.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.weak import TensorWeakRef

from weight_averaging.torch.model.selection import Entry


@dataclass(frozen=True)
class Change:
    """How the vector of a model that has changed is made from the one before.

    Attributes:
        sources: for each tensor that is averaged now its place among those before, or None if it is new.
        before: elements of each tensor before.
        words: what has changed; empty if nothing that touches the vector has.
    """

    sources: list[int | None]
    before: list[int]
    words: str

    def vector(self, before: Tensor, live: list[Tensor], into: Tensor) -> Tensor:
        """Fill `into` with the vector `before`, and where there is nothing in it, with the `live` tensors."""
        pieces = before.split(self.before)
        for index, (target, tensor) in enumerate(zip(into.split([t.numel() for t in live]), live, strict=True)):
            source = self.sources[index]
            target.copy_(tensor.reshape(-1) if source is None else pieces[source])
        return into


@dataclass(frozen=True)
class Known:
    """A tensor of an earlier look."""

    name: str
    shapes: tuple[tuple[int, ...], tuple[int, ...]]  # whole, and on this rank
    numel: int
    identity: Callable[[], Tensor | None] | None  # of `reference_to`; None: not known, as under FSDP1

    @property
    def present_id(self) -> int:
        """The id of the object that it was, if that is still there; else 0."""
        tensor = self.identity() if self.identity is not None else None
        return 0 if tensor is None else id(tensor)


def change_of(before: list[Known], now: list[Known], found: list[Tensor], entries: list[Entry]) -> Change | None:
    """From the tensors `before` to those `now`, which are `found` in `entries`; None if the vector is the same."""
    by_name = {known.name: index for index, known in enumerate(before)}
    by_identity = {known.present_id: index for index, known in enumerate(before)}
    there = set(map(id, found))

    def source(known: Known, tensor: Tensor, is_buffer: bool) -> tuple[int | None, str]:
        index = by_identity.get(id(tensor), by_name.get(known.name))
        if index is None:
            return None, f"{known.name} is new"
        earlier = before[index]
        if earlier.name != known.name and _is_other_quantity(earlier.name, known.name):
            return None, f"{known.name} was {earlier.name}"  # the same object for another quantity
        if earlier.present_id != id(tensor) and earlier.present_id in there:
            return None, f"{known.name} is new"  # the one that had this name has another one
        if earlier.shapes != known.shapes:
            return None, f"{known.name} has shape {known.shapes[0]} instead of {earlier.shapes[0]}"
        replaced = not is_buffer and earlier.identity is not None and earlier.present_id != id(tensor)
        return index, f"{known.name} is another parameter" if replaced else ""

    pairs = [source(known, tensor, entry.is_buffer) for known, tensor, entry in zip(now, found, entries, strict=True)]
    sources, words = [index for index, _ in pairs], [word for _, word in pairs if word]
    followed = {known.name for known in now} | {before[index].name for index in sources if index is not None}
    words += [f"{known.name} is gone" for known in before if known.name not in followed]
    if not words and sources == list(range(len(before))):
        return None
    text = ", ".join(words[:3]) + (f" and {len(words) - 3} more like that" if len(words) > 3 else "")
    return Change(sources, [known.numel for known in before], text)


def reference_to(tensor: Tensor) -> Callable[[], Tensor | None]:
    """What gives a tensor as long as it is there: as a rule a weak reference.

    `torch.utils.swap_tensors` refuses a tensor with a weak reference. `Module.to` exchanges DTensors and other wrapping
    tensors by it, and under `torch.__future__.set_swap_module_params_on_conversion` all. Those are held.
    """
    if is_traceable_wrapper_subclass(tensor) or torch.__future__.get_swap_module_params_on_conversion():
        return lambda: tensor
    return TensorWeakRef(tensor)


def _is_other_quantity(earlier: str, name: str) -> bool:
    """Whether one object under two names has other values under each: those that a parametrisation computes from.

    At the end of pruning (`prune.remove`) the mask is multiplied into what was `weight_orig`.
    """
    return _is_parametrised(earlier) != _is_parametrised(name) or earlier == f"{name}_orig"


def _is_parametrised(name: str) -> bool:
    """Whether it is one of torch.nn.utils.parametrize, from which the layer's own tensor is computed."""
    return "parametrizations" in name.split(".")
