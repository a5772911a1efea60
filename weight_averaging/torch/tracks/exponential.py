"""An average that is updated at each snapshot of a model's weights."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from weight_averaging.averages import Average
from weight_averaging.torch.model.blocks import Block
from weight_averaging.torch.model.changes import Change
from weight_averaging.torch.tracks.track import Track, cut, is_same


def lerp_if(good: Tensor, averages: list[Tensor], values: list[Tensor], weight: float) -> None:
    """averages += weight (values - averages) if `good` is true, a 0-d boolean tensor on their device; else nothing.

    A weight of 0 would not do, since 0 x NaN is NaN. Fused SGD has what is needed: it reads and writes once, in few
    launches, and leaves out a step whose gradients overflowed. The weight is the learning rate, the values are the
    gradients to ascend, and the weight decay is 1. Its step is this one then (on a CPU bit for bit, with a weight below
    .5).
    """
    if weight < 0.5 and good.device.type in ("cuda", "cpu"):
        torch._fused_sgd_(
            averages, values, [], lr=weight, weight_decay=1.0, maximize=True, found_inf=good.logical_not().float(),
            momentum=0.0, dampening=0.0, nesterov=False, is_first_step=False,
        )  # fmt: skip
        return
    for average, value in zip(averages, values, strict=True):
        average.lerp_(torch.where(good, value, average), weight)


class ExponentialTrack(Track):
    """ema <- ema + weight * (snapshot - ema), from the first snapshot on; the weights are those of `average`."""

    def __init__(self, *arguments: Any, average: Average) -> None:
        super().__init__(*arguments)
        self._average = average
        self.description = str(average)
        self._ema = self._memory.new(self.weights.numel) if self._memory is not None else None
        self._copied: Tensor | None = None  # where snapshots arrive that come from another memory
        self._arriving = 0.0  # the weight of the one that is under way or has arrived; 0: there is none
        self._under_way = (0, -1)  # where the last block begins, and the version of the memory before it
        self._before: tuple[list[int], int] = ([], 0)  # steps and count before the last one
        if self._copies is not None and self._memory is not None:
            self._copied = self._memory.new(self.weights.numel)

    def _weight(self, number: int) -> float:
        """With which snapshot number 2, 3, ... enters."""
        weight: float = self._average.weight(number)
        return weight

    def _unused_vectors(self) -> int:
        return int(not self.steps)

    def begin(self) -> None:
        self._blend()  # all tracks before the first one copies again: none waits for another's new copy

    @property
    def mixes(self) -> bool:
        return self._ema is not None and self._copies is None and bool(self.steps)

    def take(self, block: Block, parts: list[Tensor], good: Tensor | None = None) -> None:
        if self._ema is None or self._copies is not None:
            return
        self._under_way = (block.start, self._ema._version)
        own = cut(self._ema, block, parts)
        if not self.steps:
            torch._foreach_copy_(own, parts)
        elif good is None:
            torch._foreach_lerp_(own, parts, self._weight(self.count + 1))
        else:
            lerp_if(good, own, parts, self._weight(self.count + 1))

    def resume(self, block: Block, parts: list[Tensor]) -> None:
        start, version = self._under_way
        if self._ema is None or block.start < start:
            return
        if block.start > start or version in (-1, self._ema._version):
            self.take(block, parts)

    def taken(self, step: int) -> None:
        self._under_way = (0, -1)
        if self._ema is not None and self._copies is not None:
            if self.steps:
                assert self._copied is not None
                self._copies.begin(step, self._spare.flat, self._copied)
                self._arriving = self._weight(self.count + 1)
            else:
                self._copies.begin(step, self._spare.flat, self._ema)
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

    def average(self, block: Block, described: Average) -> Tensor:
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
        return any(is_same(vector, slot) for slot in self.slots()) and (self.steps, self.count) != ([step], count)

    def follow(self, change: Change, live: list[Tensor]) -> None:
        self._blend()
        if self._ema is not None and self._memory is not None:
            new = self._memory.new(self.weights.numel)
            self._ema = change.vector(self._ema, live, new) if self.steps else new
            self._copied = self._memory.new(self.weights.numel) if self._copied is not None else None
