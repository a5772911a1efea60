"""Checkpoints in the official form, `checkpoint_STEP`, written so that a kill at any moment leaves a whole one."""

import os
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from miniperf.errors import UsageError
from weight_averaging.snapshots import SnapshotWriter


def save(folder: Path, step: int, contents: dict[str, Any], keep_others: bool) -> None:
    """Write `checkpoint_STEP`: first under another name, then in place; older ones go only after that."""
    path = folder / f"checkpoint_{step}"
    partial = folder / f".partial_{path.name}"
    with open(partial, "wb") as file:
        torch.save(contents, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    if not keep_others:
        for number, other in _all(folder):
            if number != step:
                other.unlink()


def load_latest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint of the highest step, or None. UsageError if the file is damaged."""
    found = _all(folder)
    if not found:
        return None
    _, path = max(found)
    try:
        return path, torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch raises for a damaged file depends on where the damage is
        raise UsageError(f"{path} is damaged ({_first_line(error)}); remove it to resume from an earlier one") from None


def _all(folder: Path) -> list[tuple[int, Path]]:
    matches = ((re.fullmatch(r"checkpoint_(\d+)", path.name), path) for path in folder.glob("checkpoint_*"))
    return [(int(match[1]), path) for match, path in matches if match]


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
