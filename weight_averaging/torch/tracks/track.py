"""What is kept of a model's weights along training: the latest snapshots, or an exponential average of them.

A track takes in a snapshot block by block, all tracks that are due in one pass over the weights.
"""

import abc
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from weight_averaging.averages import Average
from weight_averaging.torch.blocks import Block
from weight_averaging.torch.changes import Change
from weight_averaging.torch.copies import HostCopies
from weight_averaging.torch.mean import accumulators, pairwise_mean
from weight_averaging.torch.pickling import packed, unpacked
from weight_averaging.torch.placement import Memory
from weight_averaging.torch.weights import LiveWeights

MEAN_BLOCK = 1 << 20  # elements of a mean that are worked on at a time on a CPU: all partial sums stay in the cache


class Track(abc.ABC):
    """Flat float32 vectors that follow a model's weights.

    Args:
        memory: where the vectors are; None where another rank holds them.
        copies: makes the copies of snapshots where that is another memory than the model's.

    Attributes:
        interval, start: updates between snapshots, and the first that may be taken.
        by_owner: whether of several replicas one holds the vectors for all.
        mixes: whether what `take` does to what is held cannot be undone.
        steps: of the snapshots that the track holds (a window) or the last one taken in (an EMA); oldest first.
        count: snapshots taken in so far.
        description: of an exponential average, with all its numbers; of a window nothing.
    """

    description = ""

    def __init__(
        self,
        weights: LiveWeights,
        interval: int,
        start: int,
        memory: Memory | None,
        copies: HostCopies | None,
        by_owner: bool,
    ) -> None:
        self.weights, self.interval, self.start, self.by_owner = weights, interval, start, by_owner
        self._memory, self._copies = memory, copies
        self.steps: list[int] = []
        self.count = 0

    def begin(self) -> None:  # noqa: B027 - not every track has something to do
        """A snapshot is about to be taken in."""

    @property
    def mixes(self) -> bool:
        return False

    @abc.abstractmethod
    def take(self, block: Block, parts: list[Tensor], good: Tensor | None = None) -> None:
        """Take in a block of the snapshot under way, given as the float32 tensors that make it up.

        Args:
            good: if it `mixes`, a 0-d boolean tensor on their device: change nothing unless it is true.
        """

    @abc.abstractmethod
    def taken(self, step: int) -> None:
        """The snapshot of update `step` is complete."""

    def keep(self) -> None:  # noqa: B027 - not every track has something to do
        """The last snapshot taken in turns out to be good."""

    @abc.abstractmethod
    def drop(self) -> None:
        """The last snapshot taken in turns out to be bad: all is as if it had never been taken."""

    @abc.abstractmethod
    def vectors(self) -> list[Tensor]:
        """The state, complete: one vector a step of `steps`."""

    @abc.abstractmethod
    def slots(self) -> list[Tensor]:
        """All memory for vectors, those of `vectors()` first."""

    @abc.abstractmethod
    def set_vectors(self, vectors: Iterable[Tensor], steps: list[int], count: int) -> None:
        """Take over a saved state, by copying, except for vectors that are this track's own memory already."""

    @abc.abstractmethod
    def follow(self, change: Change, live: list[Tensor]) -> None:
        """The model has changed: remake the vectors, with the `live` tensors for what is new."""

    @abc.abstractmethod
    def is_stale(self, vector: Tensor, step: int, count: int) -> bool:
        """Whether a vector of a state is this track's own memory and holds something else by now."""

    def __getstate__(self) -> dict[str, Any]:
        """Vectors as copies, in plain memory: what is sent to another process may stay shared with this one."""
        self.vectors()  # complete
        return {name: packed(value) for name, value in self.__dict__.items()}

    @torch.inference_mode(False)
    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({name: unpacked(value) for name, value in state.items()})
        if self._memory is not None:
            for name, value in list(self.__dict__.items()):
                self.__dict__[name] = _map_tensors(value, self._memory.own)


def lerp_if(good: Tensor, averages: list[Tensor], values: list[Tensor], weight: float) -> None:
    """averages += weight (values - averages) if `good` is true, a 0-d boolean tensor on their device; else nothing.

    A weight of 0 would not do, since 0 x NaN is NaN. Fused SGD has what is needed: it reads and writes once, in few
    launches, and leaves out a step whose gradients overflowed. With the weight as learning rate, the values as
    gradients to ascend and a weight decay of 1 its step is this one (on a CPU bit for bit, with a weight below .5).
    """
    if weight < 0.5 and good.device.type in ("cuda", "cpu"):
        torch._fused_sgd_(
            averages, values, [], lr=weight, weight_decay=1.0, maximize=True, found_inf=good.logical_not().float(),
            momentum=0.0, dampening=0.0, nesterov=False, is_first_step=False,
        )  # fmt: skip
        return
    for average, value in zip(averages, values, strict=True):
        average.lerp_(torch.where(good, value, average), weight)


def cut(vector: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Views of a flat vector, as long as the tensors of `like`."""
    return [vector] if len(like) == 1 else list(vector.split([part.numel() for part in like]))


class ExponentialTrack(Track):
    """ema <- ema + weight * (snapshot - ema), from the first snapshot on; the weights are those of `average`."""

    def __init__(self, *arguments: Any, average: Average) -> None:
        super().__init__(*arguments)
        self._weight = average.weight
        self.description = str(average)
        self._ema = self._memory.new(self.weights.numel) if self._memory is not None else None
        self._copied: Tensor | None = None  # where snapshots arrive that come from another memory
        self._arriving = 0.0  # the weight of the one that is under way or has arrived; 0: there is none
        self._before: tuple[list[int], int] = ([], 0)  # steps and count before the last one
        if self._copies is not None and self._memory is not None:
            self._copied = self._memory.new(self.weights.numel)

    def begin(self) -> None:
        self._blend()  # all tracks before the first one copies again: none waits for another's new copy

    @property
    def mixes(self) -> bool:
        return self._ema is not None and self._copies is None and bool(self.steps)

    def take(self, block: Block, parts: list[Tensor], good: Tensor | None = None) -> None:
        if self._ema is None or self._copies is not None:
            return
        own = cut(self._ema[block.range], parts)
        if not self.steps:
            torch._foreach_copy_(own, parts)
        elif good is None:
            torch._foreach_lerp_(own, parts, self._weight(self.count + 1))
        else:
            lerp_if(good, own, parts, self._weight(self.count + 1))

    def taken(self, step: int) -> None:
        if self._ema is not None and self._copies is not None:
            if self.steps:
                assert self._copied is not None
                self._copies.begin(step, self.weights.flat_copy, self._copied)
                self._arriving = self._weight(self.count + 1)
            else:
                self._copies.begin(step, self.weights.flat_copy, self._ema)
        self._before = (self.steps, self.count)
        self.steps, self.count = [step], self.count + 1

    def drop(self) -> None:
        self.steps, self.count = self._before
        self._arriving = 0.0

    def _blend(self) -> None:
        """Take in the snapshot that was copied beside training; no copy is under way on return."""
        if self._copies is not None:
            self._copies.finish()
        if self._arriving:
            assert self._ema is not None
            assert self._copied is not None
            self._ema.lerp_(self._copied, self._arriving)
            self._arriving = 0.0

    def mean(self, block: Block) -> Tensor:
        """The average over a block."""
        assert self._ema is not None
        return self._ema[block.range]

    def vectors(self) -> list[Tensor]:
        self._blend()
        return [self._ema] if self._ema is not None and self.steps else []

    def slots(self) -> list[Tensor]:
        self._blend()
        return [self._ema] if self._ema is not None else []

    def set_vectors(self, vectors: Iterable[Tensor], steps: list[int], count: int) -> None:
        self._blend()
        for vector in vectors:
            if self._ema is not None:
                self._ema.copy_(vector)
        self.steps, self.count = list(steps), count

    def is_stale(self, vector: Tensor, step: int, count: int) -> bool:
        return any(_is_same(vector, slot) for slot in self.slots()) and (self.steps, self.count) != ([step], count)

    def follow(self, change: Change, live: list[Tensor]) -> None:
        self._blend()
        if self._ema is not None and self._memory is not None:
            new = self._memory.new(self.weights.numel)
            self._ema = change.vector(self._ema, live, new) if self.steps else new
            self._copied = self._memory.new(self.weights.numel) if self._copied is not None else None


class WindowTrack(Track):
    """The latest `window` snapshots, in vectors that are reused.

    Args:
        spare: whether there is one vector more, so that the oldest snapshot is there until the newest is known to be
            good.
    """

    def __init__(self, *arguments: Any, window: int, spare: bool = False) -> None:
        super().__init__(*arguments)
        self.window, self._spare = window, spare
        # Oldest first; then those that wait to be used.
        self._held: list[Tensor] = []
        self._free: list[Tensor] = []
        if self._memory is not None:
            self._free = [self._memory.new(self.weights.numel) for _ in range(window + spare)]
        self._sums: list[Tensor] = []

    def begin(self) -> None:
        """Give up the oldest snapshot first: an interruption between two blocks leaves one less, never a mixed one."""
        self._shorten(self.window if self._spare else self.window - 1)

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
            torch._foreach_copy_(cut(self._free[0][block.range], parts), parts)

    def taken(self, step: int) -> None:
        if self._free:
            slot = self._free.pop(0)
            if self._copies is not None:
                self._copies.begin(step, self.weights.flat_copy, slot)
            self._held = [*self._held, slot]
        self.steps, self.count = [*self.steps, step], self.count + 1

    def mean(self, block: Block, window: int) -> Tensor:
        """The mean of the latest `window` snapshots over a block, on their device; overwritten by the next."""
        vectors = [vector[block.range] for vector in self.vectors()[-window:]]
        if len(vectors) == 1:
            return vectors[0]
        if len(self._sums) < accumulators(len(vectors)):
            largest = max(b.stop - b.start for b in self.weights.plan)
            shared = largest if vectors[0].device.type != "cpu" else min(largest, MEAN_BLOCK)
            lengths = [largest] + [shared] * (accumulators(len(vectors)) - 1)
            self._sums = [torch.empty(length, dtype=torch.float32, device=vectors[0].device) for length in lengths]
        stop, width = block.stop - block.start, self._sums[-1].numel()
        for low in range(0, stop, max(width, 1)):
            high = min(low + width, stop)
            sums = [self._sums[0][low:high], *(s[: high - low] for s in self._sums[1:])]
            pairwise_mean([vector[low:high] for vector in vectors], sums)
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
        number = next((number for number, slot in enumerate(self.slots()) if _is_same(vector, slot)), None)
        return number is not None and (number >= len(self.steps) or self.steps[number] != step)

    def follow(self, change: Change, live: list[Tensor]) -> None:
        self.vectors()  # complete
        if self._memory is None:
            return
        self._sums = []
        numel = self.weights.numel
        # One at a time, so that there is never more than one vector too many.
        for index, vector in enumerate(self._held):
            self._held[index] = change.vector(vector, live, self._memory.new(numel))
        for index in range(len(self._free)):
            self._free[index] = self._memory.new(numel)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_sums": []}


def _is_same(vector: Tensor, other: Tensor) -> bool:
    return vector.numel() > 0 and vector.data_ptr() == other.data_ptr()


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return [function(item) for item in value]
    return value
