"""Where snapshots and averages live, on PyTorch's devices."""

from dataclasses import dataclass

import torch

from weight_averaging.placement import on_host
from weight_averaging.torch.memory.pinned import pinned


def choose(placement: str, device: torch.device, need: int, holds: str, ranks: int = 1) -> torch.device:
    """The device for `need` bytes. Arguments and errors: see `weight_averaging.placement.on_host`.

    Args:
        device: where the model is.
    """
    is_host, is_cuda = device.type == "cpu", device.type == "cuda"
    free = 0 if is_host or placement == "host" else free_device_bytes(device)
    host = on_host(placement, need, holds, device=str(device), is_host=is_host, free=free, pinned=is_cuda, ranks=ranks)
    return torch.device("cpu") if host else device


@dataclass(frozen=True)
class Memory:
    """Where flat vectors are, and their type; pinned where copies to them are to go on beside training."""

    place: torch.device
    pinned: bool
    dtype: torch.dtype

    def unused(self, numel: int) -> int:
        """Bytes of `numel` elements that nobody has written to yet, if the machine does not count them as taken."""
        return numel * self.dtype.itemsize if self.place.type == "cpu" and not self.pinned else 0

    def new(self, numel: int) -> torch.Tensor:
        return pinned(numel, self.dtype) if self.pinned else torch.empty(numel, dtype=self.dtype, device=self.place)

    def own(self, vector: torch.Tensor) -> torch.Tensor:
        """A vector that came by pickle, as memory of this kind that may be changed outside torch.inference_mode."""
        if self.pinned and not vector.is_pinned():
            return self.new(vector.numel()).copy_(vector)
        return vector.clone() if vector.is_inference() else vector


def free_device_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on an accelerator, torch's own reserve counted as free."""
    if device.type != "cuda":
        return 1 << 62  # not known: the allocator will tell
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
