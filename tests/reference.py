"""Slow, obvious averages that the fast ones are compared with: a few lines each, in float64."""

from collections.abc import Sequence

import numpy as np


def lawa(snapshots: Sequence[np.ndarray], window: int) -> np.ndarray | None:
    """The mean of the latest `window` snapshots, or None while there are fewer."""
    if len(snapshots) < window:
        return None
    return np.mean(np.stack(snapshots[-window:]).astype(np.float64), axis=0)


def ema(snapshots: Sequence[np.ndarray], decay: float) -> np.ndarray | None:
    """Starts at the first snapshot; None before it."""
    average = None
    for snapshot in snapshots:
        snapshot = snapshot.astype(np.float64)
        average = snapshot if average is None else decay * average + (1 - decay) * snapshot
    return average
