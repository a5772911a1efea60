"""How averages build up along a pass over saved snapshots: sums of them, or the value of a recursion.

Nothing of a pass is kept here: the vectors are its own (`one_pass`).
"""

import abc
from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor

from weight_averaging.torch.tracks.mean import accumulators, add, mean_of, pairwise_mean, sum_of

# float32 elements that are worked on at a time: 1 MiB stays in a core's cache while every average takes it in.
BLOCK = 1 << 18


def sum_type(dtype: torch.dtype) -> torch.dtype:
    """The type of sums of tensors: float64 for those of float64 and complex128, else float32."""
    return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32


class Accumulation(abc.ABC):
    """How one average is made of flat vectors (float32 or float64), snapshot by snapshot, up to that of step `last`.

    Args:
        members: the steps of the snapshots that it is made of, oldest first.
        last: the latest snapshot up to the step that the average is of.
    """

    count = 1  # vectors a tensor

    def __init__(self, members: Sequence[int], last: int) -> None:
        self.members, self.last = members, last

    def takes(self, step: int) -> bool:
        """Whether the snapshot of `step` is part of the average."""
        index = bisect_left(self.members, step)
        return index < len(self.members) and self.members[index] == step

    def index(self, step: int) -> int:
        """Which of the members, from 0, the snapshot of `step` is."""
        return bisect_left(self.members, step)

    @abc.abstractmethod
    def take(self, step: int, vectors: list[Tensor], values: Tensor) -> None:
        """Take the `values` of a block into the same block of its vectors."""

    @abc.abstractmethod
    def result(self, vectors: list[Tensor], final: bool) -> Tensor:
        """The average of a tensor, flat; in the memory of its vectors only if that is final."""


class Sum(Accumulation):
    """The sum of the members, oldest first, in the order in which LAWA adds them; None for weights is their mean."""

    def __init__(self, members: Sequence[int], last: int, weights: Sequence[float] | None = None) -> None:
        super().__init__(members, last)
        self._weights = weights
        self.count = accumulators(len(members))

    def take(self, step: int, vectors: list[Tensor], values: Tensor) -> None:
        index = self.index(step)
        add(vectors, index, values if self._weights is None else values * self._weights[index])

    def result(self, vectors: list[Tensor], final: bool) -> Tensor:
        count = len(self.members)
        return mean_of(vectors, count) if self._weights is None else sum_of(vectors, count)


class Recursion(Accumulation):
    """value <- lerp(value, snapshot, weight), from the first snapshot on; one serves the averages as of many steps.

    Args:
        weights: of the second member on.
    """

    def __init__(self, members: Sequence[int], last: int, weights: Sequence[float]) -> None:
        super().__init__(members, last)
        self._weights = weights

    def take(self, step: int, vectors: list[Tensor], values: Tensor) -> None:
        index = self.index(step)
        if index == 0:
            vectors[0].copy_(values)
        else:
            vectors[0].lerp_(values, self._weights[index - 1])

    def result(self, vectors: list[Tensor], final: bool) -> Tensor:
        return vectors[0] if final else vectors[0].clone()


def mean(vectors: list[Tensor]) -> Tensor:
    """The mean of whole vectors, bit for bit that of a `Sum`."""
    mean = torch.empty_like(vectors[0])
    scratch = [mean[:BLOCK].clone() for _ in range(1, accumulators(len(vectors)))]
    for start in range(0, mean.numel(), BLOCK):
        block = mean[start : start + BLOCK]
        sums = [block, *(vector[: block.numel()] for vector in scratch)]
        pairwise_mean([vector[start : start + BLOCK] for vector in vectors], sums)
    return mean
