"""Which average a submission promises, in numbers that a reference of a few lines can follow."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from weight_averaging.averages import Average, FollowsRate

SNAPSHOTS = 64  # more than a rehearsal takes


@dataclass(frozen=True)
class Promise:
    """An average of the latest snapshots, or one that each snapshot enters with a weight.

    Attributes:
        name: in words.
        interval: updates from a snapshot to the next.
        start: the first update at which there may be one.
        needed: snapshots without which the raw weights are evaluated.
        coefficients: of the latest `needed` snapshots, oldest first; None for a recursion.
        weights: of the first, the second, ... snapshot in a recursion; None for a window.
        raw_before: whether the raw weights are evaluated until then; else it is what another submission brings.
    """

    name: str
    interval: int
    start: int
    needed: int
    coefficients: list[float] | None
    weights: list[float] | None
    raw_before: bool = True


def promise_of(module: Any, hyperparameters: Any, step_hint: int) -> dict[str, Any] | None:
    """What a submission of this repository averages, or one around another; None if it says nothing of it."""
    recipe: Any = getattr(module, "recipe", None) or getattr(module, "submission", None)
    averages = getattr(recipe, "averages", None)
    if averages is None:
        return None
    point = hyperparameters if recipe.point is None else _Point(recipe.point)
    average = averages.describe(point, step_hint)
    recursive = average.is_recursive
    calls = getattr(recipe, "calls_per_update", 1)  # the harness counts these
    return asdict(
        Promise(
            name=str(average),
            interval=calls * (average.interval or 1),
            start=calls * average.start,
            needed=average.needed,
            coefficients=None if recursive else list(average.coefficients(average.needed)),
            weights=_weights(average, recipe, point, step_hint) if recursive else None,
            raw_before=not getattr(recipe, "on_top", False),
        )
    )


def _weights(average: Average, recipe: Any, point: Any, step_hint: int) -> list[float]:
    if isinstance(average, FollowsRate):
        due = [step for step in range(1, SNAPSHOTS * (average.interval or 1)) if step % (average.interval or 1) == 0]
        return [1.0, *average.weights([recipe.learning_rate(step - 1, step_hint, point) for step in due])]
    return [1.0, *(float(average.weight(k)) for k in range(2, SNAPSHOTS))]


class _Point:
    def __init__(self, values: Mapping[str, Any]) -> None:
        self.__dict__.update(values)


def expected(promise: Promise, updated: Mapping[int, np.ndarray], step: int) -> np.ndarray | None:
    """The average at an evaluation after `step` updates, in float64; None where the raw weights are due.

    Args:
        updated: raw weights after every update up to `step`.
    """
    due = [t for t in range(1, step + 1) if t >= promise.start and t % promise.interval == 0]
    if len(due) < promise.needed:
        return None
    snapshots = [updated[t].astype(np.float64) for t in due]
    if promise.coefficients is not None:
        latest = snapshots[-promise.needed :]
        return np.sum([c * snapshot for c, snapshot in zip(promise.coefficients, latest, strict=True)], axis=0)
    assert promise.weights is not None
    average = snapshots[0]
    for weight, snapshot in zip(promise.weights[1:], snapshots[1:]):
        average = average + weight * (snapshot - average)
    return average
