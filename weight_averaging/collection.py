"""When a snapshot of the weights is due, and how horizon, interval, window and decay relate. Pure Python.

Terms, after Ajroldi, Orvieto and Geiping, "When, Where and Why to Average Weights?" (ICML 2025, arXiv 2502.06761):

- update t: the number of completed optimizer updates, 1, 2, ...
- interval nu: updates between snapshots; window L: snapshots in a LAWA average; decay beta: of an EMA over snapshots;
- horizon h: the share of a training budget of T updates that an average covers, nu * L / T. About 1 % serves well
  (their Fig. 3).
"""

import math
from numbers import Integral, Real


def is_due(step: int, interval: int, start: int = 1) -> bool:
    """Whether a snapshot is due after update `step` (1, 2, ...): from `start` on, at multiples of `interval`."""
    return step >= start and step % interval == 0


def interval_and_window(horizon: float, window: int, step_hint: int) -> tuple[int, int]:
    """Interval nu and window L that cover the share `horizon` of `step_hint` updates with at most `window` snapshots.

    nu = round(h T / L); where that would fall below 1, nu is 1 and L shrinks so that the horizon stays.

    >>> interval_and_window(0.01, 20, 120_000)
    (60, 20)
    >>> interval_and_window(0.01, 20, 1_000)
    (1, 10)
    """
    check_horizon(horizon)
    check_count("window", window)
    check_count("step_hint", step_hint)
    interval = horizon * step_hint / window
    if interval >= 1:
        return round(interval), window
    return 1, max(1, round(horizon * step_hint))


def horizon(interval: int, window: int, step_hint: int) -> float:
    """The share of `step_hint` updates that `window` snapshots, `interval` updates apart, cover: nu * L / T."""
    return check_count("interval", interval) * check_count("window", window) / check_count("step_hint", step_hint)


def decay_from_window(window: int) -> float:
    """The decay of the EMA whose snapshots are as old on average as those of a window of L: (L - 1) / (L + 1)."""
    return (check_count("window", window) - 1) / (window + 1)


def window_from_decay(decay: float) -> float:
    """The window (not rounded) whose snapshots are as old on average as an EMA's: (1 + beta) / (1 - beta)."""
    return (1 + check_decay(decay)) / (1 - decay)


def check_count(name: str, value: int) -> int:
    """`value` as an int if it is a whole number >= 1, else a one-line ValueError that names it."""
    if isinstance(value, Integral) and not isinstance(value, bool) and value >= 1:
        return int(value)
    raise ValueError(f"{name} must be a whole number >= 1, not {value!r}")


def check_decay(decay: float) -> float:
    """`decay` as a float if it lies in [0, 1), else a one-line ValueError that names it."""
    if isinstance(decay, Real) and not isinstance(decay, bool) and 0 <= decay < 1:
        return float(decay)
    hint = " (a string: drop the quotes)" if isinstance(decay, str) else ""
    raise ValueError(f"decay must be a number in [0, 1), not {decay!r}{hint}")


def check_horizon(horizon: float) -> float:
    """`horizon` as a float if it lies in (0, 1], else a one-line ValueError that names it."""
    number = isinstance(horizon, Real) and not isinstance(horizon, bool) and math.isfinite(horizon)
    if number and 0 < horizon <= 1:
        return float(horizon)
    raise ValueError(f"horizon must be a share of training in (0, 1], not {horizon!r}")
