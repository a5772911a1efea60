"""Where snapshots and averages live: beside the model on its device, or in host memory. Pure Python."""

import logging
import os
from pathlib import Path

logger = logging.getLogger("weight_averaging")

PLACEMENTS = ("auto", "device", "host")
DEVICE_SHARE = 0.1  # of the free device memory: what training itself will need is not known at the start


def on_host(
    placement: str,
    need: int,
    holds: str,
    *,
    device: str,
    is_host: bool,
    free: int,
    pinned: bool,
    host_need: int | None = None,
) -> bool:
    """Whether `need` bytes go to host memory, checked to fit; says what it chose.

    Args:
        placement: `"device"` is where the model is, `"host"` host memory (pinned beside an accelerator), `"auto"` the
            device if they are at most `DEVICE_SHARE` of its free memory, else the host.
        holds: who needs them for what, for the log and errors.
        device: what the model's device is called.
        is_host: whether its memory is the host's.
        free: its free bytes.
        pinned: whether host memory is pinned there.
        host_need: bytes in host memory, where they are more than on one device: shards of several.
    Raises:
        ValueError: there is no such placement.
        MemoryError: they do not fit, in one line with the bytes and what to try next.
    """
    if placement not in PLACEMENTS:
        raise ValueError(f"placement must be one of {', '.join(PLACEMENTS)}, not {placement!r}")
    if not is_host and placement != "host":
        if placement == "auto" and need > DEVICE_SHARE * free:
            is_host = True
        elif need > free:
            raise MemoryError(f'{holds} is {size(need)} on {device}, where {size(free)} are free: try placement="host"')
    is_host = is_host or placement == "host"
    if is_host:
        free, need = free_host_bytes(), host_need or need
        if need > free:
            raise MemoryError(
                f"{holds} is {size(need)} in host memory, where {size(free)} are free: take fewer snapshots, or save "
                "them to disk and average afterwards (weight_averaging.offline.recording, weight_averaging.offline)"
            )
    where = "pinned host memory" if pinned else "host memory"
    logger.info("%s is %s, in %s", holds, size(need), where if is_host else f"the memory of {device}")
    return is_host


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


def size(count: float) -> str:
    """Bytes in words, to three digits.

    >>> size(17), size(4_096), size(123_456_789), size(4e12)
    ('17 B', '4.1 kB', '123 MB', '4 TB')
    """
    for unit, power in (("TB", 12), ("GB", 9), ("MB", 6), ("kB", 3)):
        if count >= 10**power:
            return f"{count / 10**power:.3g} {unit}"
    return f"{count:.0f} B"
