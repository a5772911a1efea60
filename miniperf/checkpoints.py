"""Checkpoints in the official form, `checkpoint_STEP`: whole at any moment, and looked over before they are used.

The format of torch.save is a zip archive with a checksum of every tensor, which torch.load does not compare.
"""

import os
import random
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from miniperf.errors import UsageError, storage_errors
from weight_averaging.offline.recording import SnapshotWriter
from weight_averaging.offline.replacing import replacing

KEPT = 2  # if not all are: should the newest turn out to be damaged, there is another
CONTENTS = {
    "model_params", "optimizer_state", "model_state", "train_state", "eval_results", "global_step", "preemption_count",
    "batches_drawn", "random_state",
}  # fmt: skip


def save(folder: Path, step: int, contents: dict[str, Any], keep_all: bool) -> None:
    """Write `checkpoint_STEP`; older ones but the last go only when it is in place. UsageError if it cannot be."""
    path = folder / f"checkpoint_{step}"
    with storage_errors(path, lambda: _nbytes(contents)):
        with replacing(path) as file:
            torch.save(contents, file)
        if not keep_all:
            for _, other in sorted(_all(folder))[:-KEPT]:
                other.unlink()


def load_latest(folder: Path, origin: dict[str, Any]) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that is whole and of this run, or None if there are no checkpoints.

    Newer ones that are damaged or of another run are told in a line each and renamed `unusable_checkpoint_STEP`.

    Args:
        origin: the run's entries that the checkpoint's must equal.
    Raises:
        UsageError: there are checkpoints and none can be used.
    """
    for left in folder.glob(".partial_checkpoint_*"):  # by a kill
        left.unlink(missing_ok=True)
    problems: dict[Path, str] = {}
    for step, path in sorted(_all(folder), reverse=True):
        try:
            contents = _read(path, step, origin)
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


def _read(path: Path, step: int, origin: dict[str, Any]) -> dict[str, Any]:
    """The contents of a checkpoint. UsageError, in one line, if they are not as `save` wrote them for this run."""
    try:
        with zipfile.ZipFile(path) as archive:
            if differing := archive.testzip():
                raise ValueError(f"the checksum of {differing} differs")
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is raised for a damaged file depends on where the damage is
        raise UsageError(f"{path} is damaged ({_first_line(error)})") from None
    if not isinstance(contents, dict) or not contents.keys() >= CONTENTS | origin.keys():
        raise UsageError(f"{path} is not a checkpoint of a run")
    for name, mine in {**origin, "global_step": step}.items():
        if contents[name] != mine:
            raise UsageError(f"{path} was written with {name}={contents[name]!r}, not {mine!r}")
    return contents


def _all(folder: Path) -> list[tuple[int, Path]]:
    matches = ((re.fullmatch(r"checkpoint_(\d+)", path.name), path) for path in folder.glob("checkpoint_*"))
    return [(int(match[1]), path) for match, path in matches if match]


def _nbytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(map(_nbytes, items))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__


def snapshot_writer(
    folder: Path, model: torch.nn.Module, interval: int | None, steps: int | None, about: dict[str, Any]
) -> SnapshotWriter | None:
    """A writer of snapshots for averaging afterwards, into `snapshots/`, if there is an interval; tells their size."""
    if interval is None:
        return None
    writer = SnapshotWriter(folder / "snapshots", interval=interval, metadata=about)
    use = writer.disk_use(model, steps or interval) / 1e6
    print(f"{writer.folder}: {use:.1f} MB {'in all' if steps else 'each'}, every {interval} updates", flush=True)
    return writer


def seed_everything(seed: int) -> None:
    """Seed torch's, numpy's and Python's global generators."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def random_state() -> dict[str, Any]:
    """The state of torch's, numpy's and Python's global generators, in tensors, numbers and strings."""
    state = np.random.get_state(legacy=False)
    version, words, python_gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "numpy": {
            "key": torch.from_numpy(state["state"]["key"].astype(np.int64)),
            "pos": int(state["state"]["pos"]),
            "has_gauss": int(state["has_gauss"]),
            "gauss": float(state["gauss"]),
        },
        "python": [version, list(words), python_gauss],
    }


def set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    numpy = state["numpy"]
    key = numpy["key"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, numpy["pos"], numpy["has_gauss"], numpy["gauss"]))
    version, words, python_gauss = state["python"]
    random.setstate((version, tuple(words), python_gauss))
