"""What a pass over saved snapshots keeps of each average, tensor by tensor: sums, or the value of a recursion."""

import abc
from collections.abc import Iterable

import torch
from torch import Tensor

from weight_averaging.torch.tracks.mean import accumulators, add, mean_of, pairwise_mean, sum_of

# float32 elements that are worked on at a time: 1 MiB stays in a core's cache while every average takes it in.
BLOCK = 1 << 18
_LARGE = 1 << 16  # elements; what is smaller does not come from the system page by page


class Memory:
    """Float32 vectors. Those that are given back serve again: the system's pages cost more than what is done to them.

    Args:
        again: whether they do; if not, vectors may leave as results.
    """

    def __init__(self, again: bool) -> None:
        self.again = again
        self._free: list[Tensor] = []
        self._block = torch.empty(0)

    def take(self, size: int, device: torch.device) -> Tensor:
        for index, vector in enumerate(self._free):
            if vector.numel() >= size >= _LARGE and vector.device == device:
                return self._free.pop(index)[:size]
        return torch.empty(size, dtype=torch.float32, device=device)

    def float32(self, values: Tensor) -> Tensor:
        """A flat block as float32: itself, or in memory that the next block will take."""
        if values.dtype == torch.float32:
            return values
        if self._block.numel() < values.numel() or self._block.device != values.device:
            self._block = torch.empty(values.numel(), dtype=torch.float32, device=values.device)
        return self._block[: values.numel()].copy_(values)

    def give(self, vectors: Iterable[Tensor]) -> None:
        if self.again:
            whole = (vector if vector._base is None else vector._base for vector in vectors)
            self._free += [vector for vector in whole if vector.numel() >= _LARGE]


class Track(abc.ABC):
    """What is kept of one average along the pass: flat float32 vectors by name, from snapshot `first` to `last`."""

    count = 1  # vectors a tensor

    def __init__(self) -> None:
        self.values: dict[str, list[Tensor]] = {}
        self.first = self.last = 0
        self.results = 0  # that are still to come from it

    @abc.abstractmethod
    def takes(self, step: int) -> bool:
        """Whether the snapshot of `step` is part of the average."""

    @abc.abstractmethod
    def take(self, step: int, targets: list[Tensor], values: Tensor) -> None:
        """Take the float32 `values` of a block into the same block of the track's vectors, `targets`."""

    @abc.abstractmethod
    def value(self, name: str, final: bool) -> Tensor:
        """The average of a tensor, flat; the track's own memory only if it is final."""

    def targets(self, name: str, size: int, device: torch.device, memory: Memory) -> list[Tensor]:
        if name not in self.values:
            self.values[name] = [memory.take(size, device) for _ in range(self.count)]
        return self.values[name]


class Sum(Track):
    """The sum of the members, oldest first, in the order in which LAWA adds them; None for weights is their mean."""

    def __init__(self, members: list[int], last: int, weights: list[float] | None = None) -> None:
        super().__init__()
        self.members = members
        self._weights = weights
        self._index = {step: index for index, step in enumerate(members)}
        self.first, self.last = members[0], last
        self.count = accumulators(len(members))

    def takes(self, step: int) -> bool:
        return step in self._index

    def take(self, step: int, targets: list[Tensor], values: Tensor) -> None:
        index = self._index[step]
        add(targets, index, values if self._weights is None else values * self._weights[index])

    def value(self, name: str, final: bool) -> Tensor:
        count = len(self.members)
        return mean_of(self.values[name], count) if self._weights is None else sum_of(self.values[name], count)


class Recursion(Track):
    """value <- lerp(value, snapshot, weight), from the first snapshot on."""

    def __init__(self) -> None:
        super().__init__()
        self._weights: dict[int, float] = {}

    def extend(self, members: list[int], weights: list[float], last: int) -> None:
        """Go on to `last`; the members are those so far and later ones."""
        self.first, self.last = members[0], last
        self._weights = dict(zip(members, weights, strict=True))

    def takes(self, step: int) -> bool:
        return step in self._weights

    def take(self, step: int, targets: list[Tensor], values: Tensor) -> None:
        if step == self.first:
            targets[0].copy_(values)
        else:
            targets[0].lerp_(values, self._weights[step])

    def value(self, name: str, final: bool) -> Tensor:
        return self.values[name][0] if final else self.values[name][0].clone()


def mean(vectors: list[Tensor]) -> Tensor:
    mean = torch.empty_like(vectors[0])
    scratch = [mean[:BLOCK].clone() for _ in range(1, accumulators(len(vectors)))]
    for start in range(0, mean.numel(), BLOCK):
        block = mean[start : start + BLOCK]
        sums = [block, *(vector[: block.numel()] for vector in scratch)]
        pairwise_mean([vector[start : start + BLOCK] for vector in vectors], sums)
    return mean
