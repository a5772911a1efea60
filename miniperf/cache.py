"""Generated data, kept between runs in a folder: $MINIPERF_CACHE, by default ~/.cache/miniperf."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from weight_averaging.atomic_file import replacing


def folder() -> Path:
    """Where generated data is kept."""
    return Path(os.environ.get("MINIPERF_CACHE") or Path.home() / ".cache" / "miniperf")


def cached(name: str, generate: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What `generate` returns, from the cache if it is there.

    The file is written under another name and then moved. So a kill leaves no half of it, and processes that generate
    it at the same time do not meet. It is a zip archive, whose checksums are verified at every reading: a damaged file
    is generated anew, with a line that says so.

    Args:
        name: of the file; let it carry a version, to be raised whenever `generate` changes.
        generate: makes the arrays, the same ones at every call.
    """
    path = folder() / f"{name}.npz"
    if path.exists():
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        except Exception as error:  # what is raised for a damaged file depends on where the damage is
            print(f"{path} is damaged ({str(error)[:80]}): generating it again", file=sys.stderr)
    arrays = generate()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, sync=False) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:  # a full disk or a read-only home: go on without a cache
        print(f"cannot keep {path}: {error.strerror}", file=sys.stderr)
    return arrays
