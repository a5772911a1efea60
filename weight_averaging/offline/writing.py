"""Averages from snapshots to files, with memory bounded: models larger than memory go tensor by tensor."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from weight_averaging.averages import Average
from weight_averaging.offline.layouts import Layout, State
from weight_averaging.offline.plan import Plan
from weight_averaging.offline.reading import Snapshots
from weight_averaging.offline.writers import Writer, writer_for


def groups(layout: Layout, models: int, budget: int) -> list[list[str]]:
    """The tensors cut into groups for which `models` float32 copies and one snapshot fit into `budget` bytes.

    A tensor that does not fit alone is a group of its own.
    """
    result: list[list[str]] = []
    left = 0
    for name, kind in layout.items():
        size = _size(kind, models)
        if not result or size > left:
            result.append([])
            left = budget
        result[-1].append(name)
        left -= size
    return result


def memory(layout: Layout, models: int, names: list[list[str]]) -> int:
    """Bytes that the largest group takes."""
    return max(sum(_size(layout[name], models) for name in group) for group in names)


def _size(kind: tuple[tuple[int, ...], torch.dtype], models: int) -> int:
    shape, dtype = kind
    return torch.Size(shape).numel() * ((8 if dtype.is_complex else 4) * models + dtype.itemsize)


def average_to_files(
    snapshots: Snapshots,
    plan: Plan,
    outputs: Mapping[tuple[Average, int], Path],
    budget: int,
    on_read: Callable[[int], object] = lambda count: None,
    plain_names: bool = False,
) -> None:
    """Write each wanted average to its file, or folder: see `writers.writer_for`.

    Every snapshot's bytes are read once; its file is opened once per group of tensors.

    Args:
        plan: of `outputs`' averages over the snapshots.
        budget: bytes of memory to stay within, beside what files of torch.save hold.
        on_read: told the number of bytes whenever some have been read.
        plain_names: names are those of the model without wrappers, instead of those of the latest snapshot.
    """
    with contextlib.ExitStack() as stack:
        writers: dict[tuple[Average, int], tuple[Writer, dict[str, str]]] = {}
        for (average, step), path in outputs.items():
            source = snapshots.open(snapshots.latest_up_to(step))
            names = snapshots.saved_names(source)
            if plain_names:
                names = {name: name for name in names}
            layout = {
                saved: (shape, torch.float32 if plan.float32 and dtype.is_floating_point else dtype)
                for saved, (shape, dtype) in ((names[name], kind) for name, kind in snapshots.layout.items())
            }
            about = {"average": str(average), snapshots.unit: str(step)}
            about["members"] = ",".join(map(str, average.members(snapshots.steps, step)))
            writers[average, step] = writer_for(path, source, layout, about, plan.float32), names
        for writer, _ in writers.values():
            stack.enter_context(writer)
        for group in groups(snapshots.layout, plan.peak, budget):
            for result in plan.run(_told(snapshots, plan.needed, group, on_read)):
                writer, names = writers[result.average, result.step]
                for name, tensor in result.state.items():
                    writer.write(names[name], tensor)


def _told(
    snapshots: Snapshots, steps: list[int], names: list[str], on_read: Callable[[int], object]
) -> Iterator[tuple[int, State]]:
    for step, state in snapshots.stream(steps, names):
        yield step, state
        on_read(sum(tensor.nbytes for tensor in state.values()))
