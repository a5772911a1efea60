"""When a snapshot of the weights is due, and which of them a window holds. Pure Python.

Update t is the number of completed optimizer updates, 1, 2, ...; interval nu is the updates between snapshots.
"""

from collections.abc import Sequence


def is_due(step: int, interval: int, start: int = 1) -> bool:
    """Whether a snapshot is due after update `step`: from `start` on, at multiples of `interval`. 0 is before any."""
    return (step >= start) & (step % interval == 0)  # not `and`: the step may be an array of JAX


def missed(last: int, step: int, interval: int, start: int = 1) -> int:
    """The latest update after `last` and before `step` after which a snapshot was due, if none is at `step`; else 0.

    >>> missed(3, 7, 4), missed(4, 8, 4), missed(60, 70, 64)
    (4, 0, 64)
    """
    latest = step // interval * interval
    return latest if last < latest < step and latest >= start else 0


def still_held(steps: Sequence[int], interval: int, window: int, start: int = 1) -> list[int]:
    """Those of the snapshots of ascending `steps` that a window of these settings would hold: consecutive multiples.

    >>> still_held([64, 128, 192, 256, 320], interval=128, window=20)
    [128, 256]
    >>> still_held([64, 128, 192], interval=32, window=20)
    [192]
    """
    there = set(steps)
    held: list[int] = []
    wanted = steps[-1] // interval * interval if steps else 0
    while wanted in there and wanted >= start and len(held) < window:
        held.insert(0, wanted)
        wanted -= interval
    return held
