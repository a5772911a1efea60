"""Snapshots of a run that went back to an earlier checkpoint and on otherwise: those of before are no part of it."""

import contextlib
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms.hugging_face import read_json
from weight_averaging.offline.safetensors_files import LEFT, MANIFEST

_OF_TRAINER = "trainer_state.json"
_CLOCKS = ("_runtime", "_per_second")  # ends of the names of what is another number each time


def of_another_course(folder: Path) -> dict[Path, int]:
    """Snapshots of a `SnapshotWriter` behind which the run went back, and which it has not written again yet.

    Each with the first step at which other weights came.
    """
    if not (folder / MANIFEST).is_file():
        return {}
    with contextlib.suppress(SnapshotError, KeyError, TypeError):  # of somebody else, or damaged, which is no matter
        entries = read_json(folder / MANIFEST)["snapshots"]
        return {folder / entry["file"]: entry[LEFT] for entry in entries if LEFT in entry}
    return {}


def check_one_course(steps: Mapping[int, Path]) -> None:
    """Refuse checkpoints of Hugging Face's Trainer of which a later one has another log than an earlier one.

    Args:
        steps: the checkpoints by step, ascending.
    Raises:
        SnapshotError: the run went back to a checkpoint before both, and the later one is of before that.
    """
    logs = {path: _log(path / _OF_TRAINER) for path in steps.values() if (path / _OF_TRAINER).is_file()}
    for (one, earlier), (other, later) in pairwise(logs.items()):
        if any(mine != theirs for mine, theirs in zip(earlier, later)):  # one that was emptied tells nothing
            raise SnapshotError(
                f"{other} is of another course of the run than {one.name}: its log differs from that. Where "
                "a run was resumed, name the checkpoints of one course, or move the others away"
            )


def _log(path: Path) -> list[str]:
    """The entries of a Trainer's log, as text in which a NaN is like another one."""
    found = read_json(path).get("log_history")
    return [json.dumps(_without_clocks(entry), sort_keys=True) for entry in (found if isinstance(found, list) else [])]


def _without_clocks(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    return {key: value for key, value in entry.items() if not key.endswith(_CLOCKS)}
