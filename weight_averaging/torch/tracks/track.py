"""What is kept of a model's weights along training: the latest snapshots, or an exponential average of them.

A track takes in a snapshot block by block, all tracks that are due in one pass over the weights.
"""

import abc
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from weight_averaging.averages import Average
from weight_averaging.torch.memory.host_copies import HostCopies
from weight_averaging.torch.memory.pickling import packed, unpacked
from weight_averaging.torch.memory.placement import Memory
from weight_averaging.torch.model.blocks import Block
from weight_averaging.torch.model.changes import Change
from weight_averaging.torch.model.spare_copy import SpareCopy


class Track(abc.ABC):
    """Flat vectors that follow a model's weights.

    Args:
        spare: the spare copy of the weights, from which snapshots to other memory start.
        memory: where the vectors are; None where another rank holds them.
        copies: makes the copies of snapshots where that is another memory than the model's.

    Attributes:
        interval, start: updates between snapshots, and the first that may be taken.
        by_owner: whether of several replicas one holds the vectors for all.
        mixes: whether what `take` does to what is held cannot be undone.
        steps: of the snapshots that the track holds (a window) or the last one taken in (an EMA); oldest first.
        count: snapshots taken in so far.
        description: of an exponential average, with all its numbers; of a window nothing.
        learning_rate: of the snapshot to come, where it is told.
    """

    description = ""
    learning_rate: float | None = None

    def __init__(
        self,
        spare: SpareCopy,
        interval: int | None,
        start: int,
        memory: Memory | None,
        copies: HostCopies | None,
        by_owner: bool,
    ) -> None:
        assert interval is not None, "along training an average has an interval"
        self.weights, self.interval, self.start, self.by_owner = spare.weights, interval, start, by_owner
        self._spare = spare
        self._memory, self._copies = memory, copies
        self.steps: list[int] = []
        self.count = 0

    @property
    def place(self) -> torch.device | None:
        """The device of the vectors; None where another rank holds them."""
        return None if self._memory is None else self._memory.place

    def begin(self) -> None:  # noqa: B027 - not every track has something to do
        """A snapshot is about to be taken in."""

    @property
    def mixes(self) -> bool:
        return False

    @property
    def unused_bytes(self) -> int:
        """Bytes of host memory that nobody has written to yet: see `placement.promise`."""
        return 0 if self._memory is None else self._memory.unused(self._unused_vectors() * self.weights.numel)

    @abc.abstractmethod
    def _unused_vectors(self) -> int:
        """Vectors that have never been written to."""

    @abc.abstractmethod
    def take(self, block: Block, parts: list[Tensor], good: Tensor | None = None) -> None:
        """Take in a block of the snapshot under way, given as the tensors that make it up.

        Args:
            good: if it `mixes`, a 0-d boolean tensor on their device: change nothing unless it is true.
        """

    def resume(self, block: Block, parts: list[Tensor]) -> None:
        """Take in a block of a snapshot after an interruption, if it has not been yet. A copy may be made twice."""
        self.take(block, parts)

    @abc.abstractmethod
    def taken(self, step: int) -> None:
        """The snapshot of update `step` is complete."""

    def keep(self) -> None:  # noqa: B027 - not every track has something to do
        """The last snapshot taken in turns out to be good."""

    @abc.abstractmethod
    def drop(self) -> None:
        """The last snapshot taken in turns out to be bad: all is as if it had never been taken."""

    @abc.abstractmethod
    def average(self, block: Block, described: Average) -> Tensor:
        """The average over a block, flat, where the vectors are; to be read before the next one."""

    @abc.abstractmethod
    def vectors(self) -> list[Tensor]:
        """The state, complete: one vector a step of `steps`."""

    @abc.abstractmethod
    def slots(self) -> list[Tensor]:
        """All memory for vectors, those of `vectors()` first."""

    @abc.abstractmethod
    def set_vectors(self, vectors: Iterable[Tensor], steps: list[int], count: int) -> None:
        """Take over a saved state, by copying, except for vectors that are this track's own memory already."""

    def further(self) -> dict[str, Any]:
        """What a state has of the track beside vectors, steps and count: numbers by name."""
        return {}

    def set_further(self, saved: Mapping[str, Any]) -> None:  # noqa: B027 - not every track has something
        """Take over what `further` gave, if it is in a saved state."""

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


def cut(vector: Tensor, block: Block, like: list[Tensor]) -> list[Tensor]:
    """Views of a block of a flat vector, as long as the tensors of `like`."""
    own = vector if block.stop - block.start == vector.numel() else vector[block.range]
    return [own] if len(like) == 1 else list(own.split([part.numel() for part in like]))


def is_same(vector: Tensor, other: Tensor) -> bool:
    return vector.numel() > 0 and vector.data_ptr() == other.data_ptr()


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return [function(item) for item in value]
    return value
