"""The place of a checkpoint in its run: completed updates, or epochs where nobody wrote down updates."""

import re
from collections.abc import Sequence
from pathlib import Path

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms.source import Source

_STEP = re.compile(r"(?:steps?|iter(?:ation)?s?|updates?)[=_-]?(\d+)", re.IGNORECASE)
_EPOCH = re.compile(r"(?:epochs?|ep)[=_-]?(\d+)|(\d+)[=_-]?epochs?", re.IGNORECASE)
_SUFFIX = re.compile(r"(\.(pt|pth|ckpt|tar|bin|safetensors))+$")
# Words in the names of what is a copy of a snapshot, or an average already.
_ASIDE = {"best", "last", "latest", "recovery", "tmp", "ave", "avg", "average", "averaged"}


def place(source: Source) -> tuple[int | None, int | None]:
    """(updates, epochs) as the checkpoint itself or its name tells: a labelled number, else the last one.

    The last number is taken for an epoch if the checkpoint says that it is of that epoch.
    """
    if source.step is not None:
        return source.step, source.epoch
    name = _SUFFIX.sub("", source.path.name)
    if labelled := _STEP.findall(name):
        return int(labelled[-1]), source.epoch
    if epochs := _EPOCH.findall(name):
        return None, int("".join(epochs[-1]))
    numbers = [int(number) for number in re.findall(r"\d+", name)]
    if not numbers or numbers[-1] == source.epoch:
        return None, source.epoch
    return numbers[-1], source.epoch


def is_aside(path: Path, others: Sequence[Path]) -> str:
    """Why a file of a folder is left out, in a few words, going by its name; empty if it is not."""
    words = set(re.split(r"[^a-z]+", _SUFFIX.sub("", path.name).lower()))
    if found := sorted(words & _ASIDE):
        return f"{found[0]!r} in its name"
    if path.name == "checkpoint.pth" and any(re.fullmatch(r"\d+epoch\.pth", other.name) for other in others):
        return "to resume training from"  # ESPnet's
    return ""


def numbered(places: Sequence[tuple[Path, int | None, int | None]]) -> tuple[str, dict[Path, int]]:
    """What counts, "step" or "epoch", and the number of each checkpoint: steps where all have one, else epochs.

    Epochs that are counted from 0 get one more, so that the first is 1.

    Raises:
        SnapshotError: the place of one is not known.
    """
    if all(step is not None for _, step, _ in places):
        return "step", {path: step for path, step, _ in places if step is not None}
    for path, step, epoch in places:
        if epoch is None:
            what = "step is not known" if step is None else "epoch is not known, nor the steps of the others"
            raise SnapshotError(f"{path}: its {what}; put it into the name, as in step_1000{path.suffix}")
    epochs = {path: epoch for path, _, epoch in places if epoch is not None}
    from_0 = 1 if min(epochs.values()) == 0 else 0
    return "epoch", {path: epoch + from_0 for path, epoch in epochs.items()}
