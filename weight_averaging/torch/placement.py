"""Where snapshots and averages live: beside the model on its device, or in host memory."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch

logger = logging.getLogger("weight_averaging")

PLACEMENTS = ("auto", "device", "host")
DEVICE_SHARE = 0.1  # of the free device memory: what training itself will need is not known at the start


def choose(placement: str, device: torch.device, need: int, holds: str) -> torch.device:
    """The device for `need` bytes, checked to fit; says what it chose.

    Args:
        placement: `"device"` is where the model is, `"host"` host memory (pinned beside an accelerator), `"auto"` the
            device if they are at most `DEVICE_SHARE` of its free memory, else the host.
        device: where the model is.
        holds: who needs them for what, for the log and errors.
    Raises:
        ValueError: there is no such placement.
        MemoryError: they do not fit, in one line with the bytes and what to try next.
    """
    if placement not in PLACEMENTS:
        raise ValueError(f"placement must be one of {', '.join(PLACEMENTS)}, not {placement!r}")
    on_host = device.type == "cpu"
    if not on_host and placement != "host":
        free = free_device_bytes(device)
        if placement == "auto" and need > DEVICE_SHARE * free:
            on_host = True
        elif need > free:
            raise MemoryError(f'{holds} is {size(need)} on {device}, where {size(free)} are free: try placement="host"')
    on_host = on_host or placement == "host"
    if on_host:
        free = free_host_bytes()
        if need > free:
            raise MemoryError(
                f"{holds} is {size(need)} in host memory, where {size(free)} are free: take fewer snapshots, or save "
                "them to disk and average afterwards (weight_averaging.offline.recording, weight_averaging.offline)"
            )
    pinned = "pinned host memory" if device.type == "cuda" else "host memory"
    logger.info("%s is %s, in %s", holds, size(need), pinned if on_host else f"the memory of {device}")
    return torch.device("cpu") if on_host else device


@dataclass(frozen=True)
class Memory:
    """Where flat float32 vectors are; pinned where copies to them are to go on beside training."""

    place: torch.device
    pinned: bool

    def new(self, numel: int) -> torch.Tensor:
        return torch.empty(numel, dtype=torch.float32, device=self.place, pin_memory=self.pinned)

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


def free_host_bytes() -> int:
    """Bytes that can still be allocated here: of the machine, and of the container where that has a limit."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # not Linux: what there is at all
    for folder, limit, used in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            stat = dict(line.split() for line in Path(folder, "memory.stat").read_text().splitlines())
            cached = sum(int(stat.get(name, 0)) for name in ("active_file", "inactive_file"))  # given up when needed
            in_use = int(Path(folder, used).read_text()) - cached
            free = min(free, int(Path(folder, limit).read_text()) - in_use)
        except (OSError, ValueError):  # no such limit, or "max"
            continue
    return free


def size(count: int) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
