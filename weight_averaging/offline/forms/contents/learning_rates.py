"""Learning rates that checkpoints have of themselves, for an average that follows them."""

import io
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms.contents import OPTIMIZERS, mappings, number
from weight_averaging.offline.forms.pickles import load_file
from weight_averaging.offline.remote import present

_LAST = "_last_lr"  # of a torch scheduler: what the groups of its optimizer have
# Of Hugging Face's Trainer and accelerate. Schedulers first: they say the same in some hundred bytes.
_FILES = [re.compile(rf"{kind}(_\d+)?\.(pt|bin)") for kind in ("scheduler", "optimizer")]


def learning_rate(contents: Any) -> float | None:
    """The largest in all states of torch optimizers in a file, as trainers have it; None if there is none.

    Where a file has no such state it is the largest of its schedulers.
    """
    found: list[float | None] = []
    for state in mappings(contents):
        if state.keys() >= OPTIMIZERS[0] and isinstance(state["param_groups"], list):
            found += [number(group.get("lr")) for group in state["param_groups"] if isinstance(group, Mapping)]
    if all(rate is None for rate in found):
        # Of one that is made of others its own: theirs may be of the past.
        for state in mappings(contents, _is_scheduler):
            found += [number(rate) for rate in state[_LAST]] if _is_scheduler(state) else []
    return max((rate for rate in found if rate is not None), default=None)


def learning_rate_of_folder(
    path: Path, allow: Collection[str], state: Mapping[str, Any], step: int | None
) -> float | None:
    """The largest in the files of a Trainer's folder, or the one in its log; None if there is none.

    Args:
        state: the contents of `trainer_state.json`, whose log counts where it has an entry of the folder's own step.
        step: that step.
    Raises:
        SnapshotError: a file cannot be read, and no other one has it.
    """
    stopped: SnapshotError | None = None
    for pattern in _FILES:
        try:
            files = [file for file in sorted(path.iterdir()) if file.is_file() and pattern.fullmatch(file.name)]
            rates = [learning_rate(load_file(present(file), allow)) for file in files]
        except SnapshotError as error:
            stopped = stopped or error
        else:
            known = [rate for rate in rates if rate is not None]
            if known and len(known) == len(rates):  # of two optimizers one alone may be the lower
                return max(known)
    log = state.get("log_history")
    for entry in reversed(log) if isinstance(log, list) and step is not None else ():
        if isinstance(entry, Mapping) and entry.get("step") == step and "learning_rate" in entry:
            return number(entry["learning_rate"])
    if stopped is not None:
        raise stopped
    return None


def learning_rate_of_distributed(path: Path, places: Mapping[Any, Any]) -> float | None:
    """The largest of the optimizers in a folder of torch.distributed.checkpoint, or of their schedulers; None if none.

    That library saves the rate of each group, or of each parameter, apart: none of them is run.

    Args:
        places: `storage_data` of the folder's metadata.
    Raises:
        SnapshotError: one of them cannot be read.
    """
    for is_wanted in (_of_group, _of_scheduler):
        rates: list[float | None] = []
        for index, place in places.items():
            if is_wanted(index.fqn.split(".")):
                value = _value(present(path / place.relative_path), place.offset, place.length)
                rates += map(number, value if isinstance(value, list) else [value])
        if known := [rate for rate in rates if rate is not None]:
            return max(known)
    return None


def _of_group(words: list[str]) -> bool:
    return "param_groups" in words and words[-1] == "lr"


def _of_scheduler(words: list[str]) -> bool:
    return words[-1] == _LAST


def _value(path: Path, start: int, length: int) -> Any:
    """What was saved in a part of a file."""
    try:
        with open(path, "rb") as file:
            file.seek(start)
            return torch.load(io.BytesIO(file.read(length)), map_location="cpu", weights_only=True)
    except Exception as error:  # what torch raises for a damaged file depends on where the damage is
        line = " ".join(str(error).split())[:120]
        raise SnapshotError(f"{path}: a learning rate in it is damaged or refused: {line}") from None


def _is_scheduler(state: Mapping[Any, Any]) -> bool:
    return isinstance(state.get(_LAST), list)
