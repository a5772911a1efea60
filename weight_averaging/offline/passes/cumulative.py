"""Sums over all snapshots so far, from which the mean over any range takes two reads: dense sweeps of the horizon.

The sums are float64. The difference of two of them is as good as float32 sums of the range itself, for ranges above
2^-29 of all or so.
"""

import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from weight_averaging.atomic_file import replacing
from weight_averaging.averages import SnapshotError
from weight_averaging.offline.safetensors_files import SafetensorsFile, SafetensorsWriter, sha256

CHECKSUMS = "sums.json"


def write_sums(stream: Iterable[tuple[int, Mapping[str, Tensor]]], folder: Path) -> list[int]:
    """Write `sum_<step>.safetensors` for each snapshot of a stream: float64, 8 bytes a parameter. Returns the steps.

    Only floating-point tensors are summed. Memory: one float64 model. The checksums of all, in `sums.json`, come last:
    without them the sums are not read, since some may be missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CHECKSUMS).unlink(missing_ok=True)
    sums: dict[str, Tensor] = {}
    checksums: dict[int, str] = {}
    for step, state in stream:
        floating = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
        if not sums:
            sums = {name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in floating.items()}
        path = folder / _name(step)
        layout = {name: (tuple(total.shape), total.dtype) for name, total in sums.items()}
        with SafetensorsWriter(path, layout) as file:
            for name, total in sums.items():
                total.add_(floating[name])
                file.write(name, total)
        checksums[step] = sha256(path)
    with replacing(folder / CHECKSUMS) as file:
        file.write(json.dumps(checksums).encode())
    return list(checksums)


def _name(step: int) -> str:
    return f"sum_{step:08d}.safetensors"


class Sums:
    """The sums of a folder.

    Raises:
        SnapshotError: there are none, or not all.

    Attributes:
        steps: of the snapshots that were summed, ascending.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            checksums = json.loads((folder / CHECKSUMS).read_bytes())
            self._unchecked = {int(step): str(checksum) for step, checksum in checksums.items()}
        except FileNotFoundError:
            raise SnapshotError(f"{folder} holds no sums, or not all: write them by write_sums") from None
        except (ValueError, AttributeError) as error:
            raise SnapshotError(f"{folder / CHECKSUMS} is damaged: {error}; write the sums anew") from None
        self.steps = sorted(self._unchecked)

    def mean(self, after: int, until: int) -> dict[str, Tensor]:
        """The float32 mean of the snapshots of steps in (after, until], from at most two reads.

        Raises:
            SnapshotError: there is no snapshot in that range, or a file is not as it was written.
        """
        first, last = bisect_left(self.steps, after + 1), bisect_left(self.steps, until + 1)
        if first >= last:
            raise SnapshotError(f"no snapshot after step {after} and up to {until}")
        upper = self._read(self.steps[last - 1])
        if first == 0:
            return {name: total.div(last).float() for name, total in upper.items()}
        lower = self._read(self.steps[first - 1])
        return {name: total.sub(lower[name]).div_(last - first).float() for name, total in upper.items()}

    def _read(self, step: int) -> dict[str, Tensor]:
        path = self._folder / _name(step)
        checksum = self._unchecked.pop(step, None)  # at the first reading of each
        if checksum is not None and (not path.exists() or sha256(path) != checksum):
            self._unchecked[step] = checksum
            raise SnapshotError(f"{path} is not as it was written, or gone: write the sums anew")
        file = SafetensorsFile(path)
        return file.read(list(file.layout))
