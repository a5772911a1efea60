"""Tuning search spaces: JSON files in AlgoPerf's two forms, checked before any training.

- A list of points: [{"learning_rate": 1e-3, ...}, ...], of which the first `num_trials` are run.
- A dict of ranges: {"learning_rate": {"min": 1e-4, "max": 1e-2, "scaling": "log"}, "beta2": {"feasible_points":
  [0.99, 0.999]}}, sampled by a Halton sequence. The sequence is seeded: the same file, number and seed always give the
  same trials (the official harness shuffles them without a seed).
"""

import json
import logging
import math
from collections import namedtuple
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any

from weight_averaging.errors import UsageError
from weight_averaging.words import counted

logger = logging.getLogger(__name__)


def load(path: str | Path, num_trials: int | None, seed: int = 0) -> list[Any]:
    """The hyperparameters of up to `num_trials` trials, as namedtuples; None: of all points of a list.

    UsageError for anything wrong with the file.
    """
    if num_trials is not None and num_trials < 1:
        raise UsageError(f"--num_tuning_trials must be >= 1, not {num_trials}")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--tuning_search_space={path}: {error.strerror}") from None
    try:
        space = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    if not isinstance(space, list | dict) or not space:
        raise UsageError(f"{path} must be a list of points or a dict of ranges, and not empty")
    try:
        points = _from_list(space) if isinstance(space, list) else _from_dict(space, num_trials, seed)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    if num_trials is not None and num_trials > len(points):
        _say_fewer(num_trials, str(path), len(points))
    try:
        kind = namedtuple("Hyperparameters", list(points[0]))  # type: ignore[misc]  # names known at run time only
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    return [kind(**point) for point in points[:num_trials]]


@cache
def _say_fewer(num_trials: int, path: str, there: int) -> None:
    """Once, however often a file is read. The official harness too runs what there is and says so."""
    logger.warning("--num_tuning_trials=%d: %s has %s, and all are run", num_trials, path, counted(there, "point"))


def trials(ruleset: str, path: str | Path | None, num_trials: int | None, seed: int = 0) -> list[Any]:
    """The hyperparameters of all trials: as `load`, or, where the ruleset is "self", None for the one trial.

    UsageError also where ruleset, search space and number do not go together.
    """
    if ruleset == "self":
        if path is not None:
            raise UsageError("--tuning_search_space cannot be given with --tuning_ruleset=self")
        if num_trials not in (None, 1):
            raise UsageError(f"--num_tuning_trials={num_trials}: a self-tuning submission has one trial")
        return [None]
    if path is None:
        raise UsageError("--tuning_search_space must be given with --tuning_ruleset=external")
    return load(path, num_trials, seed)


def check_some(trials: list[Any], start: int | None, end: int | None) -> None:
    """UsageError if --hparam_start_index and --hparam_end_index leave none of the trials."""
    if not trials[start:end]:
        raise UsageError(
            f"--hparam_start_index and --hparam_end_index leave none of the {counted(len(trials), 'trial')}"
        )


def default_path(submission: str, workload: str, official: bool) -> str | None:
    """A submission's search space: the workload's own, where there is one beside the paper's grids, or that of all.

    None where there is no file: so it is with self-tuning submissions.
    """
    spaces = Path("tuning_search_spaces")
    own = spaces / "paper" / workload / f"{submission}.json"
    found = own if own.exists() else spaces / ("" if official else "miniperf") / f"{submission}.json"
    return str(found) if found.exists() else None


def _from_list(space: list[Any]) -> list[dict[str, Any]]:
    for number, point in enumerate(space, start=1):
        if not isinstance(point, dict) or not point:
            raise UsageError(f"point {number} must be a dict of hyperparameters, not {point!r}")
        differing = sorted(set(point) ^ set(space[0]))
        if differing:
            raise UsageError(f"point {number} and point 1 do not both have {', '.join(differing)}")
    return space


def _from_dict(space: dict[str, Any], num_trials: int | None, seed: int) -> list[dict[str, Any]]:
    if num_trials is None:
        raise UsageError("a dict of ranges needs --num_tuning_trials, the number of points to draw from it")
    for name, entry in space.items():
        _check_range(name, entry)
    from scipy.stats import qmc  # half a second that lists need not wait for

    samples = qmc.Halton(d=len(space), scramble=True, seed=seed).random(num_trials)
    return [{name: _place(entry, float(x)) for (name, entry), x in zip(space.items(), row)} for row in samples]


def _check_range(name: str, entry: Any) -> None:
    if not isinstance(entry, dict):
        raise UsageError(f'{name} must be {{"min", "max", "scaling"}} or {{"feasible_points"}}, not {entry!r}')
    if "feasible_points" in entry:
        points = entry["feasible_points"]
        if not isinstance(points, list) or not points:
            raise UsageError(f"the feasible_points of {name} must be a list that is not empty, not {points!r}")
        return
    missing = [key for key in ("min", "max", "scaling") if key not in entry]
    if missing:
        raise UsageError(f"{name} lacks {', '.join(missing)}")
    if entry["scaling"] not in ("linear", "log"):
        raise UsageError(f'the scaling of {name} must be "linear" or "log", not {entry["scaling"]!r}')
    low, high = entry["min"], entry["max"]
    if not all(isinstance(x, Real) and math.isfinite(x) for x in (low, high)) or low > high:
        raise UsageError(f"{name} must have numbers with min <= max, not {low!r} and {high!r}")
    if entry["scaling"] == "log" and low <= 0:
        raise UsageError(f"the min of {name} must be > 0 for log scaling, not {low!r}")


def _place(entry: dict[str, Any], x: float) -> Any:
    if "feasible_points" in entry:
        return entry["feasible_points"][int(x * len(entry["feasible_points"]))]
    low, high = entry["min"], entry["max"]
    if entry["scaling"] == "log":
        return low * math.exp(x * math.log(high / low))
    return low + x * (high - low)
