"""Checkpoints by the official names, `checkpoint_STEP`: whole at any moment, and looked over before they are used.

Whatever the framework they are zip archives with a checksum of every array, which is compared when one is read.
"""

import os
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

from miniperf.errors import storage_errors
from miniperf.frameworks import Framework
from weight_averaging.atomic_file import replacing
from weight_averaging.errors import UsageError

KEPT = 2  # if not all are: should the newest turn out to be damaged, there is another
CONTENTS = {
    "model_params", "optimizer_state", "model_state", "train_state", "eval_results", "global_step", "preemption_count",
    "batches_drawn", "random_state",
}  # fmt: skip


def save(framework: Framework, folder: Path, step: int, contents: dict[str, Any], keep_all: bool) -> None:
    """Write `checkpoint_STEP`; older ones but the last go only when it is in place. UsageError if it cannot be."""
    path = folder / f"checkpoint_{step}"
    with storage_errors(path, lambda: framework.nbytes(contents)):
        with replacing(path) as file:
            framework.write(contents, file)
        if not keep_all:
            for _, other in sorted(_all(folder))[:-KEPT]:
                other.unlink()


def remove_partial(folder: Path) -> None:
    """Remove what a killed run left half written. Nobody else may be at work in the folder."""
    for left in folder.glob(".partial_*"):
        left.unlink(missing_ok=True)


def load_latest(framework: Framework, folder: Path, origin: dict[str, Any]) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that is whole and of this run, or None if there are no checkpoints.

    Newer ones that are damaged or of another run are told in a line each and renamed `unusable_checkpoint_STEP`.

    Args:
        origin: the run's entries that the checkpoint's must equal.
    Raises:
        UsageError: there are checkpoints and none can be used.
    """
    problems: dict[Path, str] = {}
    for step, path in sorted(_all(folder), reverse=True):
        try:
            contents = _read(framework, path, step, origin)
        except UsageError as error:
            problems[path] = str(error)
            continue
        for other, problem in problems.items():
            aside = other.with_name(f"unusable_{other.name}")
            with storage_errors(other):
                os.replace(other, aside)
            print(f"{problem}: renamed {aside.name}, going on from {path.name}", file=sys.stderr, flush=True)
        return path, contents
    if problems:
        newest, *others = problems
        neither = f", and {', '.join(path.name for path in others)} cannot be used either" if others else ""
        remedy = "delete to start from zero, or give another --experiment_name"
        raise UsageError(f"{problems[newest]}{neither}: {remedy}")
    if any(folder.glob("*measurements.csv")):
        print(f"{folder}: no checkpoint to go on from, starting from zero", file=sys.stderr, flush=True)
    return None


def _read(framework: Framework, path: Path, step: int, origin: dict[str, Any]) -> dict[str, Any]:
    """The contents of a checkpoint. UsageError, in one line, if they are not as `save` wrote them for this run."""
    try:
        with zipfile.ZipFile(path) as archive:
            if differing := archive.testzip():
                raise ValueError(f"the checksum of {differing} differs")
        contents = framework.read(path)
    except Exception as error:  # what is raised for a damaged file depends on where the damage is
        raise UsageError(f"{path} is damaged ({_first_line(error)})") from None
    if not isinstance(contents, dict) or not contents.keys() >= CONTENTS | origin.keys():
        raise UsageError(f"{path} is not a checkpoint of a run")
    if "torch" in (contents["random_state"] or ()):
        raise UsageError(f"{path} is of an earlier version, which kept its random state in another form")
    for name, mine in {**origin, "global_step": step}.items():
        if contents[name] != mine:
            raise UsageError(f"{path} was written with {name}={contents[name]!r}, not {mine!r}")
    return contents


def _all(folder: Path) -> list[tuple[int, Path]]:
    matches = ((re.fullmatch(r"checkpoint_(\d+)", path.name), path) for path in folder.glob("checkpoint_*"))
    return [(int(match[1]), path) for match, path in matches if match]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__
