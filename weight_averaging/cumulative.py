"""Sums over all snapshots so far, from which the mean over any range takes two reads: dense sweeps of the horizon.

The sums are float64: the difference of two of them is as good as float32 sums of the range itself as long as a range
is not less than about 2^-29 of all.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from weight_averaging.averages import SnapshotError
from weight_averaging.safetensors_files import SafetensorsFile, SafetensorsWriter


def write_sums(stream: Iterable[tuple[int, Mapping[str, Tensor]]], folder: Path) -> list[int]:
    """Write `sum_<step>.safetensors` for each snapshot of a stream: float64, 8 bytes a parameter. Returns the steps.

    Only floating-point tensors are summed. Memory: one float64 model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sums: dict[str, Tensor] = {}
    steps: list[int] = []
    for step, state in stream:
        floating = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
        if not sums:
            sums = {name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in floating.items()}
        steps.append(step)
        layout = {name: (tuple(total.shape), total.dtype) for name, total in sums.items()}
        with SafetensorsWriter(folder / f"sum_{step:08d}.safetensors", layout, {"count": str(len(steps))}) as file:
            for name, total in sums.items():
                total.add_(floating[name])
                file.write(name, total)
    return steps


class Sums:
    """The sums of a folder.

    Raises:
        SnapshotError: there are none.

    Attributes:
        steps: of the snapshots that were summed, ascending.
    """

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.glob("sum_*.safetensors"))
        if not paths:
            raise SnapshotError(f"{folder} holds no sums: write them by write_sums")
        self._paths = {int(path.stem.removeprefix("sum_")): path for path in paths}
        self.steps = sorted(self._paths)

    def mean(self, after: int, until: int) -> dict[str, Tensor]:
        """The float32 mean of the snapshots of steps in (after, until], from at most two reads.

        Raises:
            SnapshotError: there is no snapshot in that range.
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
        file = SafetensorsFile(self._paths[step])
        return file.read(list(file.layout))
