"""The latest snapshots of a model's weights."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from weight_averaging.averages import Average
from weight_averaging.torch.model.blocks import Block
from weight_averaging.torch.model.changes import Change
from weight_averaging.torch.tracks.mean import accumulators, pairwise_mean, weighted_sum
from weight_averaging.torch.tracks.track import Track, cut, is_same

MEAN_BLOCK = 1 << 20  # elements of a mean that are worked on at a time on a CPU: all partial sums stay in the cache


class WindowTrack(Track):
    """The latest `window` snapshots, in vectors that are reused.

    Args:
        one_more: whether there is one vector more, so that the oldest snapshot is there until the newest is known to be
            good.
    """

    def __init__(self, *arguments: Any, window: int, one_more: bool = False) -> None:
        super().__init__(*arguments)
        self.window, self._one_more = window, one_more
        # Oldest first; then those that wait to be used.
        self._held: list[Tensor] = []
        self._free: list[Tensor] = []
        if self._memory is not None:
            self._free = [self._memory.new(self.weights.numel) for _ in range(window + one_more)]
        self._sums: list[Tensor] = []
        self._written = 0  # vectors that have been

    def _unused_vectors(self) -> int:
        self._written = max(self._written, len(self._held))
        return len(self._held) + len(self._free) - self._written

    def begin(self) -> None:
        """Give up the oldest snapshot first: an interruption between two blocks leaves one less, never a mixed one."""
        self._shorten(self.window if self._one_more else self.window - 1)

    def keep(self) -> None:
        self._shorten(self.window)

    def _shorten(self, length: int) -> None:
        surplus = max(0, len(self.steps) - length)
        self.steps = self.steps[surplus:]
        self._free += self._held[:surplus]
        self._held = self._held[surplus:]

    def drop(self) -> None:
        self.steps, self.count = self.steps[:-1], self.count - 1
        self._free = self._held[-1:] + self._free
        self._held = self._held[:-1]

    def take(self, block: Block, parts: list[Tensor], good: Tensor | None = None) -> None:
        if self._free and self._copies is None:
            torch._foreach_copy_(cut(self._free[0], block, parts), parts)

    def taken(self, step: int) -> None:
        if self._free:
            slot = self._free.pop(0)
            if self._copies is not None:
                self._copies.begin(step, self._spare.flat, slot)
            self._held = [*self._held, slot]
            self._written = max(self._written, len(self._held))
        self.steps, self.count = [*self.steps, step], self.count + 1

    def average(self, block: Block, described: Average) -> Tensor:
        assert described.held is not None
        vectors = [vector[block.range] for vector in self.vectors()[-described.held :]]
        if described.is_mean:
            return self._combined(vectors, block, pairwise_mean)
        coefficients = described.coefficients(len(vectors))
        return self._combined(vectors, block, partial(weighted_sum, coefficients=coefficients), scratch=1)

    def _combined(
        self, vectors: list[Tensor], block: Block, combine: Callable[..., Tensor], scratch: int = 0
    ) -> Tensor:
        """What `combine` makes of vectors and partial sums, of which `scratch` are only to be written over."""
        if len(vectors) == 1 and not scratch:
            return vectors[0]
        count = accumulators(len(vectors)) + scratch
        if len(self._sums) < count:
            largest = max(b.stop - b.start for b in self.weights.blocks)
            shared = largest if vectors[0].device.type != "cpu" else min(largest, MEAN_BLOCK)
            lengths = [largest] + [shared] * (count - 1)
            self._sums = [vectors[0].new_empty(length) for length in lengths]
        stop, width = block.stop - block.start, self._sums[-1].numel()
        for low in range(0, stop, max(width, 1)):
            high = min(low + width, stop)
            sums = [self._sums[0][low:high], *(s[: high - low] for s in self._sums[1:])]
            combine([vector[low:high] for vector in vectors], sums)
        return self._sums[0][:stop]

    def vectors(self) -> list[Tensor]:
        if self._copies is not None:
            self._copies.finish()
        return list(self._held)

    def slots(self) -> list[Tensor]:
        return [*self.vectors(), *self._free]

    def set_vectors(self, vectors: Iterable[Tensor], steps: list[int], count: int) -> None:
        slots = self.slots()
        if slots:
            vectors = list(vectors)
            own = {slot.data_ptr(): slot for slot in slots} if self.weights.numel else {}
            held = [own.pop(vector.data_ptr(), None) for vector in vectors]
            free = list(own.values()) if self.weights.numel else slots
            for index, vector in enumerate(vectors):
                if held[index] is None:
                    held[index] = free.pop(0).copy_(vector)
            self._held, self._free = [slot for slot in held if slot is not None], free
        self.steps, self.count = list(steps), count

    def is_stale(self, vector: Tensor, step: int, count: int) -> bool:
        number = next((number for number, slot in enumerate(self.slots()) if is_same(vector, slot)), None)
        return number is not None and (number >= len(self.steps) or self.steps[number] != step)

    def follow(self, change: Change, live: list[Tensor]) -> None:
        self.vectors()  # complete
        if self._memory is None:
            return
        self._sums, self._written = [], len(self._held)
        numel = self.weights.numel
        # One at a time, so that there is never more than one vector too many.
        for index, vector in enumerate(self._held):
            self._held[index] = change.vector(vector, live, self._memory.new(numel))
        for index in range(len(self._free)):
            self._free[index] = self._memory.new(numel)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_sums": []}
