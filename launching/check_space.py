"""What goes wrong upstream, often in silence, with a search space."""

import json
import math
import re
from collections.abc import Iterator
from numbers import Real
from pathlib import Path
from typing import Any

from launching.check_code import Finding

TRIALS = 5  # of external tuning


def check(path: Path) -> list[Finding]:
    """All findings in a search space, by line."""
    try:
        text = path.read_text()
        space = json.loads(text)
    except OSError as error:
        return [Finding(path, 0, f"cannot be read: {error.strerror}")]
    except json.JSONDecodeError as error:
        return [Finding(path, error.lineno, f"not JSON: {error.msg}")]
    if not isinstance(space, list | dict) or not space:
        return [Finding(path, 1, "must be a list of points or a dict of ranges, and not empty")]
    found = _points(text) if isinstance(space, list) else _ranges(text)
    return sorted(Finding(path, line, message) for line, message in found)


def _points(text: str) -> Iterator[tuple[int, str]]:
    first: dict[str, Any] | None = None
    seen: list[tuple[int, int, Any]] = []  # number, line, point
    for number, (line, point) in enumerate(_elements(text), start=1):
        if number == TRIALS + 1:
            yield line, f"external tuning runs {TRIALS} trials, in the order of the file: the points from here on never"
        if not isinstance(point, dict) or not point:
            yield line, f"point {number} must be a dict of hyperparameters"
            continue
        first = first or point
        if set(point) != set(first):
            yield line, f"point {number} and the first do not both have {', '.join(sorted(set(point) ^ set(first)))}"
        if same := [f"point {n} (line {at})" for n, at, other in seen if other == point]:
            yield line, f"point {number} is {same[0]} again: a trial wasted"
        seen.append((number, line, point))
        yield from ((line, message) for message in _names(point))


def _elements(text: str) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON list, each with the line it starts in."""
    at = text.index("[") + 1
    while text[at := _next(text, at)] != "]":
        element, end = json.JSONDecoder().raw_decode(text, at)
        yield _line(text, at), element
        at = end


def _members(text: str) -> Iterator[tuple[int, str, Any]]:
    """The members of a JSON object, each with the line its name is in."""
    at = text.index("{") + 1
    while text[at := _next(text, at)] != "}":
        name, end = json.JSONDecoder().raw_decode(text, at)
        value, end = json.JSONDecoder().raw_decode(text, _next(text, end))
        yield _line(text, at), name, value
        at = end


def _next(text: str, at: int) -> int:
    """Where the next word begins, from a place between words."""
    between = re.compile(r"[\s,:]*").match(text, at)
    assert between is not None
    return between.end()


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _names(point: dict[str, Any]) -> Iterator[str]:
    for name in point:
        if not name.isidentifier() or name.startswith("_"):
            yield f"{name!r} cannot be the name of a hyperparameter"


def _ranges(text: str) -> Iterator[tuple[int, str]]:
    yield (
        1,
        "a dict of ranges is shuffled upstream without a seed: jobs that split it repeat points; use a list",
    )
    for line, name, entry in _members(text):
        yield from ((line, message) for message in _names({name: entry}))
        yield from ((line, f"{name}: {message}") for message in _range(entry))


def _range(entry: Any) -> Iterator[str]:
    if not isinstance(entry, dict):
        yield 'must be {"min", "max", "scaling"} or {"feasible_points"}'
        return
    if "feasible_points" in entry:
        if not isinstance(entry["feasible_points"], list) or not entry["feasible_points"]:
            yield "feasible_points must be a list: upstream crashes on a single value"
        return
    missing = [key for key in ("min", "max", "scaling") if key not in entry]
    if missing:
        yield f"lacks {', '.join(missing)}"
        return
    low, high, scaling = entry["min"], entry["max"], entry["scaling"]
    if scaling not in ("linear", "log"):
        yield f'the scaling {scaling!r} is silently taken for linear; write "linear" or "log"'
    numbers = all(isinstance(x, Real) and not isinstance(x, bool) and math.isfinite(x) for x in (low, high))
    if not numbers or low > high:
        yield f"must have numbers with min <= max, not {low!r} and {high!r}"
    elif scaling == "log" and low <= 0:
        yield f"log scaling needs min > 0, not {low!r}"
