"""What has happened to the tensors of a model between two looks at it.

The rule: a tensor goes on under its name if it has the same shape, whatever its type, memory layout and device are now,
and under a new name if it is the same parameter. Every other one is new, and what is not there any more is dropped.
"""

import weakref
from dataclasses import dataclass

from torch import Tensor

from weight_averaging.torch.selection import Entry


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
    identity: "weakref.ref[Tensor] | None"  # None: not known, as after unpickling

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
    sources: list[int | None] = []
    words = []
    for known, tensor, entry in zip(now, found, entries):
        index = by_identity.get(id(tensor))
        if index is None:
            index = by_name.get(known.name)
            if index is not None and before[index].present_id in there:
                index = None  # the one of this name has moved elsewhere
        if index is None:
            words.append(f"{known.name} is new")
        elif before[index].shapes != known.shapes:
            words.append(f"{known.name} has shape {known.shapes[0]} instead of {before[index].shapes[0]}")
            index = None
        elif not entry.is_buffer and before[index].identity is not None and before[index].present_id != id(tensor):
            words.append(f"{known.name} is another parameter")
        sources.append(index)
    followed = {known.name for known in now} | {before[index].name for index in sources if index is not None}
    words += [f"{known.name} is gone" for known in before if known.name not in followed]
    if not words and sources == list(range(len(before))):
        return None
    text = ", ".join(words[:3]) + (f" and {len(words) - 3} more like that" if len(words) > 3 else "")
    return Change(sources, [known.numel for known in before], text)
