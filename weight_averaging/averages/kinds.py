"""What an average is: which snapshots it is made of, with which weights. Pure Python, for averages online and offline.

An interval is in updates and counts from the start of training, as online: the average takes the snapshots of every
multiple of it. Without one it takes every snapshot there is.
"""

import abc
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any, ClassVar

from weight_averaging.collection import (
    check_count,
    check_decay,
    check_horizon,
    exponent_from_horizon,
    is_due,
    warmup_weight,
)

# The functions of which weights are made, under the names that array libraries give them.
NUMBERS = SimpleNamespace(
    maximum=max, expm1=math.expm1, log1p=lambda value: math.log1p(value) if value > -1 else -math.inf
)


class SnapshotError(ValueError):
    """Snapshots that are missing, damaged or unlike each other, in one line that names the file or the step."""


@dataclass(frozen=True, kw_only=True)
class Average(abc.ABC):
    """What all have in common.

    Args:
        interval: updates between the snapshots taken, nu >= 1; None: every snapshot there is.
        start: the first update whose snapshot may be taken.
    """

    interval: int | None = None
    start: int = 1
    is_mean: ClassVar[bool] = False  # all weights equal
    is_recursive: ClassVar[bool] = False  # average <- average + weight(k) * (snapshot k - average)

    def __post_init__(self) -> None:
        if self.interval is not None:
            check_count("interval", self.interval)
        check_count("start", self.start)

    def __str__(self) -> str:
        own, common = fields(self)[2:], fields(self)[:2]  # interval and start last
        given = {field.name: getattr(self, field.name) for field in (*own, *common)}
        defaults = {field.name: field.default for field in fields(self)}
        shown = [f"{name}={_shown(value)}" for name, value in given.items() if value != defaults[name]]
        return " ".join([type(self).__name__.lower(), *shown])

    def coefficients(self, count: int) -> list[float]:
        """The weights of `count` members in the average, oldest first. They sum to 1."""
        if self.is_mean:
            return [1.0 / count] * count
        left, result = 1.0, []
        for number in range(count, 1, -1):
            result.append(left * self.weight(number))
            left *= 1.0 - self.weight(number)
        return [left, *reversed(result)]

    def weight(self, number: Any, functions: Any = NUMBERS) -> Any:
        """The weight with which snapshot number 2, 3, ... enters the recursion; the first one starts it.

        Args:
            number: an int, or an array of another library.
            functions: that library (`jax.numpy`): exact to its rounding, with nothing lost to cancellation.
        """
        raise NotImplementedError(f"{self} is no recursion")

    def members(self, steps: Sequence[int], at: int) -> list[int]:
        """The steps of the snapshots that the average as of update `at` is made of, oldest first.

        Args:
            steps: the steps of all snapshots, ascending.
        Raises:
            SnapshotError: there are too few, or one is missing; the nearest usable intervals are named.
        """
        due = self._due(steps, at)
        members = self._choose(due, at)
        if not members:
            have = f"{len(due)} up to there ({_some(due)})" if due else f"none up to there (saved are {_some(steps)})"
            raise SnapshotError(f"{self} at step {at} needs {self._needs()}, but there are {have}")
        saved = set(steps)
        missing = [step for step in members if step not in saved]
        if missing:
            usable = self._usable_intervals(saved, at)
            hint = f"usable intervals nearest to it: {', '.join(map(str, usable))}" if usable else "no interval does"
            raise SnapshotError(
                f"{self} at step {at} needs the snapshot of step {missing[0]}, which was not saved ({hint}); "
                f"saved are {_some(steps)}"
            )
        return members

    @abc.abstractmethod
    def _choose(self, due: list[int], at: int) -> list[int]:
        """Those of the snapshots due up to `at` that belong to the average; empty if they do not suffice."""

    def _needs(self) -> str:
        return "a snapshot"

    def _due(self, steps: Sequence[int], at: int) -> list[int]:
        if self.interval is None:
            return [step for step in steps if self.start <= step <= at]
        return [s for s in range(self.interval, at + 1, self.interval) if is_due(s, self.interval, self.start)]

    def _usable_intervals(self, saved: set[int], at: int) -> list[int]:
        """Up to three intervals, nearest first, for which all snapshots are there."""
        assert self.interval is not None
        usable = []
        # An interval's latest multiple is always taken, so that interval divides a saved step.
        for candidate in sorted({d for step in saved if step <= at for d in _divisors(step)}):
            due = [s for s in range(candidate, at + 1, candidate) if s >= self.start]
            members = self._choose(due, at)
            if members and saved.issuperset(members):
                usable.append(candidate)
        nearest = sorted(usable, key=lambda candidate: abs(math.log(candidate / self.interval)))  # type: ignore[operator]
        return nearest[:3]


@dataclass(frozen=True, kw_only=True)
class LAWA(Average):
    """The mean of the latest `window` snapshots (Ajroldi et al., ICML 2025, arXiv 2502.06761, Algorithm 1)."""

    window: int
    is_mean: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("window", self.window)

    def _choose(self, due: list[int], at: int) -> list[int]:
        return due[-self.window :] if len(due) >= self.window else []

    def _needs(self) -> str:
        return f"{self.window} snapshots"


@dataclass(frozen=True, kw_only=True)
class EMA(Average):
    """ema <- decay * ema + (1 - decay) * snapshot, from the first snapshot on (as above, Algorithm 2).

    With `warmup` the decay begins small: `collection.warmup_weight`.
    """

    decay: float
    warmup: bool = False
    is_recursive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_decay(self.decay)
        if not isinstance(self.warmup, bool):
            raise ValueError(f"warmup must be True or False, not {self.warmup!r}")

    def _choose(self, due: list[int], at: int) -> list[int]:
        return due

    def weight(self, number: Any, functions: Any = NUMBERS) -> Any:
        return warmup_weight(self.decay, number - 1, functions.maximum) if self.warmup else 1.0 - self.decay


@dataclass(frozen=True, kw_only=True)
class Tail(Average):
    """The plain mean of the snapshots of the last `share` of the updates so far: of steps > (1 - share) * at."""

    share: float
    is_mean: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            check_horizon(self.share)
        except ValueError:
            raise ValueError(f"share must be in (0, 1], not {self.share!r}") from None

    def _choose(self, due: list[int], at: int) -> list[int]:
        return [step for step in due if step > (1.0 - self.share) * at]

    def _needs(self) -> str:
        return f"a snapshot of the last {self.share:g} of the updates"


def _cosine(x: float) -> float:
    return (1.0 + math.cos(math.pi * x)) / 2.0


# Decays of the learning rate, from 1 at x = 0 to 0 at x = 1.
SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda x: 1.0 - x,
    "cosine": _cosine,
    "1-sqrt": lambda x: 1.0 - math.sqrt(x),
}


@dataclass(frozen=True, kw_only=True)
class Merge(Tail):
    """The snapshots of the last `share` of the updates so far, merged so as to stand for a decay of the learning rate.

    Tian et al., "WSM: Decay-Free Learning Rate Schedule via Checkpoint Merging" (arXiv 2507.17634): at a constant
    learning rate, the sum of c_j theta_j over snapshots j = 0, ..., n-1 is theta_0 plus the updates between snapshots
    j-1 and j, weighted by w_j = c_j + ... + c_{n-1}. So c_j = w_j - w_{j+1} with w_j = s(j / n) for a decay s, which is
    1 at j = 0 and 0 at j = n. `linear` is the plain mean, that is, `Tail`.

    Args:
        shape: s, one of `linear`, `cosine` and `1-sqrt`; snapshots count as equally far apart.
        share: as of `Tail`.
    """

    shape: str
    is_mean: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shape not in SHAPES:
            raise ValueError(f"shape must be one of {', '.join(SHAPES)}, not {self.shape!r}")

    def coefficients(self, count: int) -> list[float]:
        decay = [SHAPES[self.shape](j / count) for j in range(count + 1)]
        return [one - after for one, after in itertools.pairwise(decay)]


@dataclass(frozen=True, kw_only=True)
class Weighted(Average):
    """The latest snapshots with given weights, oldest first; there are as many as weights.

    Args:
        weights: finite, none of them 0, with the sum 1; negative ones extrapolate.
    """

    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if bad := [w for w in self.weights if not (isinstance(w, int | float) and math.isfinite(w) and w)]:
            raise ValueError(f"weights must be finite numbers other than 0, not {bad[0]!r}")
        if not abs(math.fsum(self.weights) - 1.0) <= 1e-6:
            raise ValueError(f"weights must have the sum 1, not {math.fsum(self.weights):.6g}")

    def coefficients(self, count: int) -> list[float]:
        return list(self.weights)

    def _choose(self, due: list[int], at: int) -> list[int]:
        return due[-len(self.weights) :] if len(due) >= len(self.weights) else []

    def _needs(self) -> str:
        return f"{len(self.weights)} snapshots"


@dataclass(frozen=True, kw_only=True)
class Power(Average):
    """An EMA whose length grows with training (Karras et al. 2024, "EDM2", arXiv 2312.02696, section 3.1).

    The k-th snapshot enters with decay beta_k = (1 - 1/k)^(gamma + 1), so that a snapshot's weight is about
    proportional to step^gamma. `gamma` = 6.94 and 16.97 are the paper's 10 % and 5 % of training.
    """

    gamma: float
    is_recursive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.gamma, int | float) and math.isfinite(self.gamma) and self.gamma >= 0):
            raise ValueError(f"gamma must be a number >= 0, not {self.gamma!r}")

    def _choose(self, due: list[int], at: int) -> list[int]:
        return due

    def weight(self, number: Any, functions: Any = NUMBERS) -> Any:
        return -functions.expm1((self.gamma + 1.0) * functions.log1p(-1.0 / number))  # 1 - (1 - 1/k)^(gamma + 1)


def exponential(
    decay: float | None, horizon: float | None = None, warmup: bool = False, interval: int | None = None, start: int = 1
) -> EMA | Power:
    """The exponential average of either a decay or a horizon (the share of the updates so far that it covers)."""
    if (decay is None) == (horizon is None):
        raise TypeError(f"EMA takes either a decay or a horizon, not decay={decay!r} and horizon={horizon!r}")
    if horizon is not None:
        if warmup:
            raise TypeError("EMA with a horizon grows from the start: warmup goes with a decay")
        return Power(gamma=exponent_from_horizon(horizon), interval=interval, start=start)
    assert decay is not None
    return EMA(decay=decay, warmup=warmup, interval=interval, start=start)


def _divisors(number: int) -> set[int]:
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return {*small, *(number // d for d in small)}


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _some(steps: Sequence[int]) -> str:
    if len(steps) <= 5:
        return ", ".join(map(str, steps)) or "none"
    return f"{steps[0]}, {steps[1]}, ..., {steps[-1]}"
