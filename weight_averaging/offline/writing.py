"""Averages from a folder of snapshots to files, with memory bounded: models larger than memory go tensor by tensor."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from weight_averaging.averages import Average, SnapshotError
from weight_averaging.offline.layouts import Layout, State
from weight_averaging.offline.plan import Plan
from weight_averaging.offline.reading import Snapshots
from weight_averaging.offline.replacing import replacing
from weight_averaging.offline.safetensors_files import SafetensorsWriter


def groups(layout: Layout, models: int, budget: int) -> list[list[str]]:
    """The tensors cut into groups for which `models` float32 copies and one snapshot fit into `budget` bytes.

    A tensor that does not fit alone is a group of its own.
    """
    result: list[list[str]] = []
    left = 0
    for name, (shape, dtype) in layout.items():
        size = torch.Size(shape).numel() * (4 * models + dtype.itemsize)
        if not result or size > left:
            result.append([])
            left = budget
        result[-1].append(name)
        left -= size
    return result


def memory(layout: Layout, models: int, names: list[list[str]]) -> int:
    """Bytes that the largest group takes."""
    sizes = {name: torch.Size(shape).numel() * (4 * models + dtype.itemsize) for name, (shape, dtype) in layout.items()}
    return max(sum(sizes[name] for name in group) for group in names)


def average_to_files(
    snapshots: Snapshots,
    plan: Plan,
    outputs: Mapping[tuple[Average, int], Path],
    budget: int,
    on_read: Callable[[int], object] = lambda count: None,
) -> None:
    """Write each wanted average to its file: `.safetensors`, tensor by tensor, or `.pt`, held in memory till the end.

    Every snapshot's bytes are read once; its file is opened once per group of tensors.

    Args:
        plan: of `outputs`' averages over the snapshots.
        budget: bytes of memory to stay within, beside what `.pt` files hold.
        on_read: told the number of bytes whenever some have been read.
    """
    layout = {
        name: (shape, torch.float32 if plan.float32 and dtype.is_floating_point else dtype)
        for name, (shape, dtype) in snapshots.layout.items()
    }
    with contextlib.ExitStack() as stack:
        writers = {key: _writer(path, key, layout) for key, path in outputs.items()}
        for writer in writers.values():
            stack.enter_context(writer)
        for names in groups(snapshots.layout, plan.peak, budget):
            for result in plan.run(_told(snapshots, plan.needed, names, on_read)):
                for name, tensor in result.state.items():
                    writers[result.average, result.step].write(name, tensor)


def _told(
    snapshots: Snapshots, steps: list[int], names: list[str], on_read: Callable[[int], object]
) -> Iterator[tuple[int, State]]:
    for step, state in snapshots.pieces(steps, names):
        yield step, state
        on_read(sum(tensor.nbytes for tensor in state.values()))


def _writer(path: Path, key: tuple[Average, int], layout: Layout) -> "SafetensorsWriter | _TorchWriter":
    average, step = key
    if path.suffix == ".safetensors":
        return SafetensorsWriter(path, layout, {"average": str(average), "step": str(step)})
    if path.suffix in (".pt", ".pth"):
        return _TorchWriter(path)
    raise SnapshotError(f"{path}: the name must end in .safetensors or .pt")


class _TorchWriter:
    """A file of torch.save, written when all tensors are there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state: dict[str, Tensor] = {}

    def write(self, name: str, tensor: Tensor) -> None:
        self._state[name] = tensor

    def __enter__(self) -> "_TorchWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            with replacing(self._path) as file:
                torch.save(self._state, file)
