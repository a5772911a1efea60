"""Averages from snapshots to files, with memory bounded: models go piece by piece."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from weight_averaging.averages import Average
from weight_averaging.offline.passes.pieces import groups, streams
from weight_averaging.offline.passes.plan import Plan
from weight_averaging.offline.reading.snapshots import Snapshots
from weight_averaging.offline.writing.outputs import Writer, writer_for


def average_to_files(
    snapshots: Snapshots,
    plan: Plan,
    outputs: Mapping[tuple[Average, int], Path],
    budget: int,
    on_read: Callable[[int], object] = lambda count: None,
    plain_names: bool = False,
) -> None:
    """Write each wanted average to its file, or folder: see `writers.writer_for`.

    Every snapshot's bytes are read once. Its file is opened once if it can be mapped, else once per group of tensors.

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
        cut = groups(snapshots.layout, plan.peak, budget, snapshots.mapped)
        for pieces, results in plan.run_parts(streams(snapshots, plan.needed, cut, on_read)):
            for result in results:
                writer, names = writers[result.average, result.step]
                for piece in pieces:
                    writer.write_part(names[piece.name], piece.start, result.state[piece.name])
