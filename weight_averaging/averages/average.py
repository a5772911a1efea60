"""What every average has in common: its snapshots, and the weight of each. Pure Python, online and offline.

An interval is in updates and counts from the start of training, as online: the average takes the snapshots of every
multiple of it. Without one it takes every snapshot there is.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any, ClassVar

from weight_averaging.averages.checks import check_count
from weight_averaging.averages.schedule import is_due
from weight_averaging.errors import UsageError
from weight_averaging.words import inline

#: The functions of which weights are made, under the names that array libraries give them.
NUMBERS = SimpleNamespace(
    maximum=max,
    minimum=min,
    cos=math.cos,
    expm1=math.expm1,
    log1p=lambda value: math.log1p(value) if value > -1 else -math.inf,
    sqrt=math.sqrt,
)


class SnapshotError(UsageError):
    """Snapshots that are missing, damaged or unlike each other, in one line that names the file or the step."""


@dataclass(frozen=True, kw_only=True)
class Average:
    """What an average is made of, described once for live models, saved files, grids and submissions.

    One of your own is a frozen dataclass of one of two kinds (docs/own_average.md):

    - a recursion sets `is_recursive` and has `weight`: each snapshot enters with a weight, and one vector is kept;
    - a window has a field `window`, the number of the latest snapshots that are kept, and `coefficients`.

    Args:
        interval: updates between the snapshots taken, nu >= 1; None: every snapshot there is, which only saved
            snapshots allow.
        start: the first update whose snapshot may be taken; 0: the initial weights, before any update.
    """

    interval: int | None = None
    start: int = 1
    is_mean: ClassVar[bool] = False  # all weights equal
    is_recursive: ClassVar[bool] = False  # average <- average + weight(k) * (snapshot k - average)

    def __post_init__(self) -> None:
        if self.interval is not None:
            self._set("interval", check_count("interval", self.interval))
        self._set("start", check_count("start", self.start, least=0))

    def _set(self, name: str, value: object) -> None:
        """Keep an argument as a plain Python value: it may have come as one of NumPy's."""
        object.__setattr__(self, name, value)

    def __str__(self) -> str:
        own, common = fields(self)[2:], fields(self)[:2]  # interval and start last
        given = {field.name: getattr(self, field.name) for field in (*own, *common)}
        defaults = {field.name: field.default for field in fields(self)}
        shown = [f"{name}={_shown(value)}" for name, value in given.items() if value != defaults[name]]
        return " ".join([type(self).__name__.lower(), *shown])

    @property
    def held(self) -> int | None:
        """How many of the latest snapshots it is made of; None: of a recursion, or of a number that grows."""
        return getattr(self, "window", None)

    @property
    def needed(self) -> int:
        """Snapshots before there is an average: those of a whole window, or one."""
        return self.held or 1

    @property
    def dead_zone(self) -> float:
        """How near weights are, relative to their size, that it no longer moves towards when held in float32."""
        return 0.0

    def coefficients(self, count: int) -> list[float]:
        """The weights of `count` members in the average, oldest first. They sum to 1."""
        if self.is_mean:
            return [1.0 / count] * count
        if not self.is_recursive:
            raise NotImplementedError(f"{type(self).__name__} says neither its coefficients nor that it is_recursive")
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

    def _choose(self, due: list[int], at: int) -> list[int]:
        """Those of the snapshots due up to `at` that belong to the average; empty if they do not suffice."""
        if self.is_recursive:
            return due
        if self.held is None:
            raise NotImplementedError(f"{type(self).__name__} has no `window` and says not that it is_recursive")
        return due[-self.held :] if len(due) >= self.needed else []

    def _needs(self) -> str:
        return f"{self.needed} snapshots" if self.needed > 1 else "a snapshot"

    def _due(self, steps: Sequence[int], at: int) -> list[int]:
        if self.interval is None:
            start = self.start if self.start > 1 else 0  # what was saved before the first update is a snapshot too
            return [step for step in steps if start <= step <= at]
        return [s for s in range(0, at + 1, self.interval) if is_due(s, self.interval, self.start)]

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


def _divisors(number: int) -> set[int]:
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return {*small, *(number // d for d in small)}


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _some(steps: Sequence[int]) -> str:
    if len(steps) <= 5:
        return ", ".join(map(str, steps)) or "none"
    return f"{steps[0]}, {steps[1]}, ..., {steps[-1]}"


def check_along_training(average: Average) -> None:
    """Refuse, in one line, what cannot be followed along training.

    Raises:
        TypeError: it is no description, or made of a number of snapshots that grows.
        ValueError: it has no interval.
    """
    if not isinstance(average, Average):
        raise TypeError(f"an average is described by one of weight_averaging.averages, not by {inline(average)}")
    if not average.is_recursive and average.held is None:
        raise TypeError(
            f"{average} cannot be tracked along training: the number of its snapshots grows. Give it a window, or make "
            "it of saved snapshots (weight_averaging.offline)"
        )
    if average.interval is None:
        raise ValueError(f"{average} needs an interval")


def all_along_training(averages: Iterable[Average]) -> list[Average]:
    """Several, followed together.

    Raises:
        TypeError, ValueError: as `check_along_training` of each; or there is none, or one twice.
    """
    found = list(averages)
    if not found:
        raise ValueError("no averages to track")
    for number, average in enumerate(found):
        check_along_training(average)
        if average in found[:number]:
            raise ValueError(f"{average} is there twice")
    return found
