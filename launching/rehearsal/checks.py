"""What a rehearsal's record says: whether evaluations saw the average, training the raw weights, and the rest."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from launching.rehearsal.averages import Promise, expected
from launching.rehearsal.record import RESTORED, SEEN, TRAINED, UPDATED, Record
from weight_averaging.words import counted

# Relative to the largest weight: float32 sums of a few numbers, and a cast.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Check:
    """Of one thing. `passed` None: it cannot be told of this submission."""

    name: str
    passed: bool | None
    says: str


@dataclass(frozen=True)
class Measured:
    """Seconds and GiB; None where nothing was measured.

    Attributes:
        first_batch: seconds from the start of the process until the first batch was there.
        update: median of those after the first of each part.
        processor: seconds of processor time of rank 0, until the kill and after it.
        device_gib, host_gib: peaks, the latter of the process of rank 0.
    """

    first_batch: float | None
    first_update: float | None
    update: float | None
    evaluation: float | None
    checkpoint: float | None
    processor: float
    device_gib: float | None
    host_gib: float


def checks(record: Record, updates: int, killed_after: int, codes: Sequence[int]) -> list[Check]:
    """All of them, in the order of a run.

    Args:
        updates: that the run was to make.
        killed_after: the update after whose checkpoint it was to be killed.
        codes: exit statuses of the two parts; the first is that of the kill.
    """
    events = record.events()
    return [
        _data(events),
        _updates(record, updates),
        _evaluations(events, updates),
        _seen(record, events, updates),
        _raw_back(record, updates),
        _restored(record, events, killed_after),
        _ended(events, codes),
    ]


def _of(events: list[dict[str, Any]], name: str, part: int | None = None) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == name and part in (None, event["part"])]


def _data(events: list[dict[str, Any]]) -> Check:
    count = len(_of(events, "batch"))
    return Check("data read", count > 0, f"{count} batches" if count else "no batch came")


def _updates(record: Record, updates: int) -> Check:
    weights = record.weights(UPDATED)
    if sorted(weights) != list(range(updates + 1)):
        return Check("updates", False, f"{max(weights, default=0)} of {updates} made")
    # A rate that warms up from next to nothing leaves the first update without effect in float32.
    still = [t for t in range(2, updates + 1) if np.array_equal(weights[t], weights[t - 1])]
    if still:
        says = "never changed the weights" if len(still) == updates - 1 else f"update {still[0]} changed no weight"
        return Check("updates", False, says)
    odd = [t for t, values in weights.items() if not np.isfinite(values).all()]
    return Check("updates", not odd, f"weights after update {odd[0]} are not finite" if odd else f"{updates} made")


def _evaluations(events: list[dict[str, Any]], updates: int) -> Check:
    # The runner logs a RuntimeError in an evaluation and goes on.
    steps = {event["step"] for event in _of(events, "evaluated")}
    missing = sorted(set(range(1, updates + 1)) - steps)
    return Check("evaluations", not missing, f"none after update {missing[0]}" if missing else f"{len(steps)} made")


def _seen(record: Record, events: list[dict[str, Any]], updates: int) -> Check:
    """Whether every evaluation saw what the submission promises of the weights after the updates so far."""
    name = "average"
    first = _of(events, "initialised")
    updated, seen = record.weights(UPDATED), record.weights(SEEN)
    if not first or not seen:
        return Check(name, False, "no evaluation")
    if any(t not in updated for step in seen for t in range(1, step + 1)):
        return Check(name, False, "not all updates were noted")
    if (given := first[0]["promise"]) is None:
        other = [step for step, values in seen.items() if not np.array_equal(values, updated[step])]
        if not other and not first[0]["averaging_hook"]:
            return Check(name, True, "raw weights, as promised")
        return Check(name, None, f"other than the raw weights at {len(other)} of {counted(len(seen), 'evaluation')}")
    promise = Promise(**given)
    averages, worst = 0, 0.0
    for step, values in seen.items():
        due = expected(promise, updated, step)
        averages += due is not None
        if due is None and not promise.raw_before:
            continue
        distance = _distance(values, updated[step] if due is None else due)
        if distance > TOLERANCE:
            what = "raw weights" if due is None else promise.name
            return Check(name, False, f"evaluation {step} saw weights {distance:.1e} away from the {what}")
        worst = max(worst, distance)
    if not averages:
        return Check(name, None, f"raw weights at all {len(seen)} evaluations: {promise.name} is not full by {updates}")
    return Check(name, True, f"{averages} of {counted(len(seen), 'evaluation')}, within {worst:.1e}")


def _raw_back(record: Record, updates: int) -> Check:
    """Whether every update after an evaluation took its gradient at the weights from before it."""
    name = "raw weights back"
    updated, trained = record.weights(UPDATED), record.weights(TRAINED)
    if not trained:
        return Check(name, None, "training does not go through the workload's model_fn")
    worst = 0.0
    for step, values in trained.items():
        if step - 1 not in updated:
            return Check(name, False, f"update {step - 1} was not noted")
        distance = _distance(values, updated[step - 1])
        if distance > TOLERANCE:
            return Check(name, False, f"update {step} began {distance:.1e} away from the weights of update {step - 1}")
        worst = max(worst, distance)
    return Check(name, True, f"in {counted(len(trained), 'update')}, within {worst:.1e}")


def _restored(record: Record, events: list[dict[str, Any]], killed_after: int) -> Check:
    name = "checkpoint"
    if not _of(events, "saved"):
        return Check(name, False, "none was written")
    restored, seen = record.weights(RESTORED), record.weights(SEEN)
    if not restored:
        return Check(name, False, "none was restored")
    step = max(restored)
    if step != killed_after:
        return Check(name, False, f"restored at update {step}, not {killed_after}")
    # A submission may put the raw weights back as soon as its own state is restored.
    known = {"as evaluated": seen, "as the raw weights of it": record.weights(UPDATED)}
    which = [
        words for words, weights in known.items() if step in weights and np.array_equal(restored[step], weights[step])
    ]
    says = which[0] if which else "with weights that neither were evaluated nor trained"
    return Check(name, bool(which), f"restored at update {step}, {says}")


def _ended(events: list[dict[str, Any]], codes: Sequence[int]) -> Check:
    if len(codes) < 2:
        return Check("end", False, "ended before it could be killed" if codes and not codes[0] else "failed at first")
    if codes[1]:
        return Check("end", False, f"resumed, failed with exit status {codes[1]}")
    return Check("end", bool(_of(events, "ended", 2)), "killed, resumed, ended")


def _distance(values: np.ndarray, others: np.ndarray) -> float:
    """The largest difference, over the largest weight."""
    if values.shape != others.shape:
        return float("inf")
    scale = float(np.abs(others).max()) or 1.0
    distance = float(np.abs(values.astype(np.float64) - others).max()) / scale
    return distance if np.isfinite(distance) else float("inf")


def measured(record: Record) -> Measured:
    """Times and memory of both parts."""
    events = record.events()
    begun = {event["part"]: event["at"] for event in _of(events, "started")}
    batches = _of(events, "batch", 1)
    updates = [_of(events, "updated", part) for part in (1, 2)]
    devices = [event["device_gib"] for event in events if event.get("device_gib") is not None]
    return Measured(
        first_batch=batches[0]["at"] - begun[1] if batches and 1 in begun else None,
        first_update=updates[0][0]["seconds"] if updates[0] else None,
        update=_median([event["seconds"] for part in updates for event in part[1:]]),
        evaluation=_median([event["seconds"] for event in _of(events, "evaluated")]),
        checkpoint=_median([event["seconds"] for event in _of(events, "saved")]),
        processor=sum(max((e["cpu_s"] for e in events if e["part"] == part), default=0.0) for part in (1, 2)),
        device_gib=max(devices, default=None),
        host_gib=max((event["host_gib"] for event in events), default=0.0),
    )


def _median(values: list[float]) -> float | None:
    return median(values) if values else None
