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


def nadamw(
    theta: np.ndarray, gradients: Sequence[np.ndarray], lr: float, b1: float, b2: float, decay: float, eps: float = 1e-8
) -> np.ndarray:
    """The equations of NadamW's docstring."""
    theta = theta.astype(np.float64)
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    for t, g in enumerate(gradients, start=1):
        g = g.astype(np.float64)
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        numerator = (b1 * m + (1 - b1) * g) / (1 - b1**t)
        theta = (1 - lr * decay) * theta - lr * numerator / (np.sqrt(v / (1 - b2**t)) + eps)
    return theta
