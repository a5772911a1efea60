"""Where snapshots and averages live: beside the model on its device, or in host memory. Pure Python."""

import contextlib
import logging
import os
import weakref
from pathlib import Path
from typing import Protocol, TypeVar

from weight_averaging.words import inline

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
    ranks: int = 1,
) -> bool:
    """Whether `need` bytes go to host memory, checked to fit; says what it chose.

    Args:
        placement: `"device"` is where the model is, `"host"` is host memory (pinned beside an accelerator). `"auto"` is
            the device if they are at most `DEVICE_SHARE` of its free memory, else the host.
        holds: who needs them for what, for the log and errors.
        device: what the model's device is called.
        is_host: whether its memory is the host's.
        free: its free bytes.
        pinned: whether host memory is pinned there.
        host_need: bytes in host memory, where they are more than on one device: shards of several.
        ranks: processes on this machine that take as much in host memory at the same time.
    Raises:
        ValueError: there is no such placement.
        MemoryError: they do not fit, in one line with the bytes and what to try next.
    """
    if placement not in PLACEMENTS:
        raise ValueError(f"placement must be one of {', '.join(PLACEMENTS)}, not {inline(placement)}")
    if not is_host and placement != "host":
        if placement == "auto" and need > DEVICE_SHARE * free:
            is_host = True
        elif need > free:
            raise MemoryError(f'{holds} is {size(need)} on {device}, where {size(free)} are free: try placement="host"')
    is_host = is_host or placement == "host"
    if is_host:
        need, free = host_need or need, free_host_bytes()
        # Pinned memory is taken at once, by each rank: what the others have is not free any more.
        left = free if pinned else max(0, free - promised())
        if need > left or need * ranks > (total_host_bytes() if pinned else left):
            times = f", on each of {ranks} ranks here" if ranks > 1 else ""
            others = f" ({size(free - left)} more go to averages made before)" if size(free - left) != "0 B" else ""
            raise MemoryError(
                f"{holds} is {size(need)} in host memory{times}, where {size(left)} are free{others}: take fewer "
                "snapshots, or save them to disk and average afterwards (weight_averaging.offline.recording, "
                "weight_averaging.offline)"
            )
    where = "pinned host memory" if pinned else "host memory"
    logger.info("%s is %s, in %s", holds, size(need), where if is_host else f"the memory of {device}")
    return is_host


class Holder(Protocol):
    """What has memory that it has not written to yet, so that the machine counts it as free."""

    @property
    def unused_bytes(self) -> int: ...


H = TypeVar("H", bound=Holder)
_HOLDERS: "weakref.WeakSet[Holder]" = weakref.WeakSet()


def promise(holder: H) -> H:
    """Count the host memory that `holder` has not used yet as taken, for as long as the object is there."""
    _HOLDERS.add(holder)
    return holder


def promised() -> int:
    """Bytes that this process has for averages and has not used yet."""
    return sum(holder.unused_bytes for holder in list(_HOLDERS))


def total_host_bytes() -> int:
    """Bytes of the machine's memory, or of the container's where that has a limit."""
    total = _of_machine("MemTotal")
    for folder, limit, _ in _CONTAINERS:
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(Path(folder, limit).read_text()))
    return total


def _of_machine(name: str) -> int:
    """Of Linux a line of /proc/meminfo; elsewhere what memory there is at all, or a number beyond any."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 1 << 62  # Windows, which refuses at once what it does not have


_CONTAINERS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def free_host_bytes() -> int:
    """Bytes that can still be allocated here: of the machine, and of the container where that has a limit."""
    free = _of_machine("MemAvailable")
    for folder, limit, used in _CONTAINERS:
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
