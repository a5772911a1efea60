"""What is kept of a model's weights along training: the latest snapshots, or an exponential average of them.

A track takes in a snapshot block by block, all tracks that are due in one pass over the weights.
"""

import abc
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from weight_averaging.torch.copies import CudaStreams, HostCopies
from weight_averaging.torch.mean import accumulators, pairwise_mean
from weight_averaging.torch.placement import choose, new_vector
from weight_averaging.torch.ranks import Ranks
from weight_averaging.torch.weights import Block, LiveWeights

MEAN_BLOCK = 1 << 20  # elements of a mean that are worked on at a time on a CPU: all partial sums stay in the cache


class Track(abc.ABC):
    """Flat float32 vectors that follow a model's weights.

    Attributes:
        interval, start: updates between snapshots, and the first that may be taken.
        by_owner: whether of several replicas one holds the vectors for all.
        steps: of the snapshots that the track holds (a window) or the last one taken in (an EMA); oldest first.
    """

    by_owner: ClassVar[bool] = False

    def __init__(self, weights: LiveWeights, interval: int, start: int) -> None:
        self.weights, self.interval, self.start = weights, interval, start
        self.steps: list[int] = []

    @abc.abstractmethod
    def take(self, block: Block, parts: list[Tensor]) -> None:
        """Take in a block of the snapshot under way, given as the float32 tensors that make it up."""

    @abc.abstractmethod
    def taken(self, step: int) -> None:
        """The snapshot of update `step` is complete."""

    @abc.abstractmethod
    def vectors(self) -> list[Tensor]:
        """The state, complete: one vector a step of `steps`."""

    @abc.abstractmethod
    def slots(self) -> list[Tensor]:
        """All memory for vectors, those of `vectors()` first."""

    @abc.abstractmethod
    def set_vectors(self, vectors: Iterable[Tensor], steps: list[int]) -> None:
        """Take over a saved state, by copying."""


def cut(vector: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Views of a flat vector, as long as the tensors of `like`."""
    return [vector] if len(like) == 1 else list(vector.split([part.numel() for part in like]))


class ExponentialTrack(Track):
    """ema <- decay * ema + (1 - decay) * snapshot, from the first snapshot on."""

    def __init__(self, weights: LiveWeights, interval: int, start: int, decay: float) -> None:
        super().__init__(weights, interval, start)
        self.decay = decay
        self._ema = torch.empty(weights.numel, dtype=torch.float32, device=weights.device)

    def take(self, block: Block, parts: list[Tensor]) -> None:
        own = cut(self._ema[block.range], parts)
        if self.steps:
            torch._foreach_lerp_(own, parts, 1.0 - self.decay)
        else:
            torch._foreach_copy_(own, parts)

    def taken(self, step: int) -> None:
        self.steps = [step]

    def average(self, block: Block) -> Tensor:
        return self._ema[block.range]

    def vectors(self) -> list[Tensor]:
        return [self._ema] if self.steps else []

    def slots(self) -> list[Tensor]:
        return [self._ema]

    def set_vectors(self, vectors: Iterable[Tensor], steps: list[int]) -> None:
        for vector in vectors:
            self._ema.copy_(vector)
        self.steps = list(steps)


class WindowTrack(Track):
    """The latest snapshots, in a ring of vectors that are reused.

    Args:
        ring: as many vectors as the window holds at most, or none where another rank holds them.
        copies: makes the copies where the ring is in another memory than the model.
    """

    by_owner = True

    def __init__(
        self,
        weights: LiveWeights,
        interval: int,
        start: int,
        window: int,
        ring: list[Tensor],
        copies: HostCopies | None,
    ) -> None:
        super().__init__(weights, interval, start)
        self.window = window
        self._ring = ring
        self._copies = copies
        self._next = 0
        self._sums: list[Tensor] = []

    def take(self, block: Block, parts: list[Tensor]) -> None:
        if self._ring and self._copies is None:
            torch._foreach_copy_(cut(self._ring[self._next][block.range], parts), parts)

    def taken(self, step: int) -> None:
        if self._ring and self._copies is not None:
            self._copies.begin(step, self.weights.flat_copy, self._ring[self._next])
        self._next = (self._next + 1) % self.window
        self.steps = [*self.steps, step][-self.window :]

    def average(self, block: Block, window: int) -> Tensor:
        """The mean of the latest `window` snapshots over a block, on the ring's device; overwritten by the next."""
        vectors = [vector[block.range] for vector in self.vectors()[-window:]]
        if len(vectors) == 1:
            return vectors[0]
        if len(self._sums) < accumulators(len(vectors)):
            largest = max(b.stop - b.start for b in self.weights.plan)
            shared = largest if vectors[0].device.type != "cpu" else min(largest, MEAN_BLOCK)
            lengths = [largest] + [shared] * (accumulators(len(vectors)) - 1)
            self._sums = [torch.empty(length, dtype=torch.float32, device=vectors[0].device) for length in lengths]
        stop, width = block.stop - block.start, self._sums[-1].numel()
        for low in range(0, stop, width):
            high = min(low + width, stop)
            sums = [self._sums[0][low:high], *(s[: high - low] for s in self._sums[1:])]
            pairwise_mean([vector[low:high] for vector in vectors], sums)
        return self._sums[0][:stop]

    def vectors(self) -> list[Tensor]:
        if self._copies is not None:
            self._copies.finish()
        if not self._ring:
            return []
        return [self._ring[(self._next - back) % self.window] for back in range(len(self.steps), 0, -1)]

    def slots(self) -> list[Tensor]:
        used = self.vectors()
        return [*used, *(self._ring[(self._next + k) % self.window] for k in range(len(self._ring) - len(used)))]

    def set_vectors(self, vectors: Iterable[Tensor], steps: list[int]) -> None:
        if self._copies is not None:
            self._copies.finish()
        for slot, vector in zip(self._ring, vectors):
            slot.copy_(vector)
        self.steps = list(steps)
        self._next = len(steps) % self.window


def host_copies(weights: LiveWeights) -> HostCopies | None:
    """What copies snapshots of a model to host memory beside training, one for all its windows; None if not on CUDA."""
    return HostCopies(CudaStreams(weights.device)) if weights.device.type == "cuda" else None


def window_track(
    weights: LiveWeights,
    ranks: Ranks,
    copies: HostCopies | None,
    interval: int,
    start: int,
    window: int,
    placement: str,
) -> WindowTrack:
    """A window with its memory, on the rank that is to hold it. Raises as `placement.choose`."""
    if not ranks.is_owner:
        return WindowTrack(weights, interval, start, window, [], None)
    holds = f"a window of {window} snapshots of {weights.numel:,} weights"
    place = choose(placement, weights.device, 4 * weights.numel * window, holds)
    ring = [new_vector(weights.numel, place, weights.device) for _ in range(window)]
    return WindowTrack(weights, interval, start, window, ring, copies if place.type == "cpu" else None)
