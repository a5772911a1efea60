"""Pinned host memory of the size that is asked for.

torch's own allocator rounds pinned memory up to a power of two, and keeps it. The window of criteo1tb, 45 GB in vectors
of 2.16 GB, took 92 GB and a minute to reserve (measured on an H100, torch 2.11). Pages of our own that are registered
with the driver take what they are.
"""

import mmap

import torch
from torch import Tensor

SMALL = 1 << 20  # bytes up to which torch's own allocator does as well
PORTABLE = 1  # cudaHostRegisterPortable: pinned for all devices of the process


class _Pages(mmap.mmap):
    """Memory that the driver knows as pinned for as long as anything refers to it."""

    registered = 0

    def __del__(self) -> None:
        if self.registered:
            torch.cuda.synchronize()  # no copy is under way
            torch.cuda.cudart().cudaHostUnregister(self.registered)


def pinned(numel: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A vector in pinned memory, not initialised."""
    nbytes = dtype.itemsize * numel
    if nbytes > SMALL:
        pages = _Pages(-1, nbytes)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            pages.madvise(mmap.MADV_HUGEPAGE)
        vector = torch.frombuffer(pages, dtype=dtype)
        if int(torch.cuda.cudart().cudaHostRegister(vector.data_ptr(), nbytes, PORTABLE)) == 0:
            pages.registered = vector.data_ptr()
            return vector
    return torch.empty(numel, dtype=dtype, pin_memory=True)
