"""Arguments that cannot be, each refused in one line that names the value. Pure Python."""

import logging
import math
import operator
from functools import lru_cache
from numbers import Integral, Real
from typing import Any

from weight_averaging.words import inline

logger = logging.getLogger("weight_averaging")

BUFFERS = ("average", "latest", "recompute")  # what may become of floating-point buffers


def check_step(step: object, last: int) -> int:
    """`step` as an int (NumPy's integers and tensors of one integer are taken) if it is larger than `last`.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is not larger.
    """
    if type(step) is int and step > last:
        return step
    try:
        number = operator.index(step)  # type: ignore[arg-type]
        if isinstance(step, bool):
            raise TypeError
    except (TypeError, RuntimeError):  # the latter: a tensor of several
        hint = f": int({step!r})?" if isinstance(step, float) else ""
        given = f"{inline(step)}{hint}"
        raise TypeError(f"update takes the number of completed updates, a whole number, not {given}") from None
    if number <= last:
        hint = "; an average that begins at the initial weights is made with start=0" if number == last == 0 else ""
        before = f"update({number}) after update({last})" if last > 0 else f"update({number}) before update(1)"
        raise ValueError(f"{before}: pass the number of completed updates, 1, 2, ...{hint}")
    return int(number)


def check_count(name: str, value: int, least: int = 1) -> int:
    """`value` as an int if it is a whole number >= `least`, else a one-line ValueError that names it."""
    if isinstance(value, Integral) and not isinstance(value, bool) and value >= least:
        return int(value)
    whole = isinstance(value, Real) and math.isfinite(value) and value == int(value) >= least
    hint = f": {int(value)}?" if whole and not isinstance(value, bool) else ""
    raise ValueError(f"{name} must be a whole number >= {least}, not {inline(value)}{hint}")


def check_flag(name: str, value: bool) -> bool:
    """`value` if it is True or False, else a one-line ValueError that names it."""
    if isinstance(value, bool):
        return value
    raise ValueError(f"{name} must be True or False, not {inline(value)}")


def check_decay(decay: float) -> float:
    """`decay` as a float if it lies in [0, 1), else a one-line ValueError that names it."""
    if isinstance(decay, Real) and not isinstance(decay, bool) and 0 <= decay < 1:
        return float(decay)
    hint = " (a string: drop the quotes)" if isinstance(decay, str) else ""
    if callable(decay):
        hint = ": a decay that changes is averages.Ramp, or a description of your own (docs/own_average.md)"
    raise ValueError(f"decay must be a number in [0, 1), not {inline(decay)}{hint}")


def check_horizon(horizon: float) -> float:
    """`horizon` as a float if it lies in (0, 1], else a one-line ValueError that names it."""
    number = isinstance(horizon, Real) and not isinstance(horizon, bool) and math.isfinite(horizon)
    if number and 0 < horizon <= 1:
        return float(horizon)
    raise ValueError(f"horizon must be a share of training in (0, 1], not {inline(horizon)}")


def check_share(share: float) -> float:
    """`share`, of the updates so far, as a float if it lies in (0, 1], else a one-line ValueError that names it."""
    try:
        return check_horizon(share)
    except ValueError:
        raise ValueError(f"share must be in (0, 1], not {inline(share)}") from None


def check_rate(rate: Any) -> float:
    """A learning rate as a float if it is a finite number >= 0; a tensor of one is taken, for which it is waited.

    Raises:
        ValueError: it is not, in one line.
    """
    try:
        number = math.nan if isinstance(rate, str | bool) else float(rate)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError(f"learning_rate must be a number >= 0, not {inline(rate)}")
    return number


@lru_cache  # once for each
def tell_of_dead_zone(average: str, dead_zone: float, remedy: str) -> None:
    """Warn of an average in float32 that stands still although weights are more than a thousandth away."""
    if dead_zone > 1e-3:
        logger.warning(
            "%s stands still in float32 where the weights differ from it by less than %.0e of their size: %s does not",
            average,
            dead_zone,
            remedy,
        )
