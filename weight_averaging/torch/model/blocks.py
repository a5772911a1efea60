"""A flat vector cut into blocks, and the checks on their values.

Averaging is bound by memory traffic, so the vector is walked in blocks. A block stays in the processor's cache while
all averages take it in. For these the weights are read from memory once, and once before that to check them.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

# float32 elements a block: 8 MiB stays in a last-level cache, yet an operation on it outweighs the cost of starting
# threads. On an accelerator larger blocks mean fewer launches. Of 2^16 to 2^21 the last was best on two cores, of 2^20
# to 2^26 on an H100 the last three (docs/results/gpu).
CPU_BLOCK = 1 << 21
ACCELERATOR_BLOCK = 1 << 24
SMALL = 1 << 15  # elements of a tensor


@dataclass(frozen=True)
class Part:
    """The elements [start, stop) of one tensor, flattened."""

    index: int
    start: int
    stop: int

    def of(self, tensor: Tensor) -> Tensor:
        flat = tensor.reshape(-1)
        return flat if self.stop - self.start == flat.numel() else flat[self.start : self.stop]


@dataclass(frozen=True)
class Block:
    """The range [start, stop) of the flat vector and the parts it is made of, in order."""

    start: int
    stop: int
    parts: tuple[Part, ...]

    @property
    def range(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def is_small(self) -> bool:
        """Whether its parts are so many and small that gathering them costs less than an operation on each."""
        return len(self.parts) > 1 and self.stop - self.start < len(self.parts) * SMALL

    @property
    def sizes(self) -> list[int]:
        return [part.stop - part.start for part in self.parts]


def blocks_of(tensors: list[Tensor], device: torch.device) -> list[Block]:
    """Cut the flat vector of these tensors into blocks; a tensor that is not contiguous is never cut."""
    block_numel = CPU_BLOCK if device.type == "cpu" else ACCELERATOR_BLOCK
    blocks: list[Block] = []
    parts: list[Part] = []
    start = stop = 0

    def close() -> None:
        nonlocal parts, start
        if parts:
            blocks.append(Block(start, stop, tuple(parts)))
            parts, start = [], stop

    for index, tensor in enumerate(tensors):
        numel = tensor.numel()
        if not tensor.is_contiguous():
            if stop - start + numel > block_numel:
                close()
            parts.append(Part(index, 0, numel))
            stop += numel
            continue
        # Fill up the open block, then go on in whole blocks.
        room = block_numel - (stop - start)
        edges = [0, *range(room, numel, block_numel), numel] if 0 < room < numel else [0, numel]
        if room <= 0:
            close()
            edges = [*range(0, numel, block_numel), numel]
        for low, high in pairwise(edges):
            if stop - start >= block_numel:
                close()
            parts.append(Part(index, low, high))
            stop += high - low
    close()
    return blocks
