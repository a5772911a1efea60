"""Memory of a pass that serves again."""

from collections.abc import Iterable

import torch
from torch import Tensor

from weight_averaging.offline.passes.sums import sum_type

_LARGE = 1 << 16  # elements; what is smaller does not come from the system page by page


class Memory:
    """Vectors of float32, and of float64 for sums of that.

    Those that are given back serve again: the system's pages cost more than what is done to them.

    Args:
        again: whether they do; if not, vectors may leave as results.
    """

    def __init__(self, again: bool) -> None:
        self.again = again
        self._free: list[Tensor] = []
        self._block = torch.empty(0)

    def take(self, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        for index, vector in enumerate(self._free):
            if vector.numel() >= size >= _LARGE and vector.device == device and vector.dtype == dtype:
                return self._free.pop(index)[:size]
        return torch.empty(size, dtype=dtype, device=device)

    def to_sum(self, values: Tensor) -> Tensor:
        """A flat block in the type of its sums: itself, or in memory that the next block will take."""
        dtype = sum_type(values.dtype)
        if values.dtype == dtype:
            return values
        if self._block.numel() < values.numel() or self._block.device != values.device:
            self._block = torch.empty(values.numel(), dtype=dtype, device=values.device)
        return self._block[: values.numel()].copy_(values)

    def give(self, vectors: Iterable[Tensor]) -> None:
        if self.again:
            whole = (vector if vector._base is None else vector._base for vector in vectors)
            self._free += [vector for vector in whole if vector.numel() >= _LARGE]
