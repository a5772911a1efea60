"""Averages from snapshots to files, with memory bounded: models go piece by piece."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from weight_averaging.averages import Average
from weight_averaging.offline.forms.source import Source
from weight_averaging.offline.layouts import Layout
from weight_averaging.offline.passes.pieces import Piece, groups, streams
from weight_averaging.offline.passes.plan import Plan
from weight_averaging.offline.reading.snapshots import Snapshots
from weight_averaging.offline.writing.batch_norm import Recompute, RecomputingWriter
from weight_averaging.offline.writing.outputs import Writer, has_others, writer_for


def average_to_files(
    snapshots: Snapshots,
    plan: Plan,
    outputs: Mapping[tuple[Average, int], Path],
    budget: int,
    on_read: Callable[[int], object] = lambda count: None,
    plain_names: bool = False,
    overwrite: bool = True,
    recompute: Recompute | None = None,
    said: Callable[[str], object] = lambda line: None,
) -> None:
    """Write each wanted average to its file, or folder: see `outputs.writer_for`.

    Every snapshot's bytes are read once. Its file is opened once if it can be mapped, else once per group of tensors.

    Args:
        plan: of `outputs`' averages over the snapshots.
        budget: bytes of memory to stay within. What reads and writes folders of torch.distributed.checkpoint takes two
            tensors more, and Orbax a model.
        on_read: told the number of bytes whenever some have been read.
        plain_names: names are those of the model without wrappers, instead of those of the latest snapshot.
        overwrite: whether what is there already is written over.
        recompute: gives the model and batches for batch-norm statistics of the averages (`batch_norm`); None: they are
            averaged.
        said: told in a line what that did.
    Raises:
        SnapshotError: a snapshot is damaged, is unlike the others or has changed.
        OSError: an output cannot be written; FileExistsError where it is there and must not be written over.
    """
    chosen: Layout = {}
    # Of what cannot be mapped a group of whole tensors takes half of the budget, its average a quarter.
    most = budget // (2 if snapshots.mapped else 4) // max(len(outputs), 1)
    with contextlib.ExitStack() as stack:
        writers: dict[tuple[Average, int], tuple[Writer, dict[str, str]]] = {}
        for (average, step), path in outputs.items():
            source = snapshots.open(snapshots.latest_up_to(step))
            whole = layout_for(snapshots, path, source)
            chosen |= whole
            saved = snapshots.saved_names(source)
            names = {name: name if plain_names else saved[name] for name in whole}
            layout = {
                names[name]: (shape, torch.float32 if plan.float32 and dtype.is_floating_point else dtype)
                for name, (shape, dtype) in whole.items()
            }
            about = {"average": str(average), snapshots.unit: str(step)}
            about["members"] = ",".join(map(str, average.members(snapshots.steps, step)))
            writer = writer_for(path, source, layout, about, plan.float32, overwrite, most)
            if recompute is not None:
                writer = RecomputingWriter(writer, recompute, snapshots.layout, names, said)
            writers[average, step] = writer, names
        for writer, _ in writers.values():
            stack.enter_context(writer)
        cut = parts_of(snapshots, plan, chosen, budget)
        for pieces, results in plan.run_parts(streams(snapshots, plan.needed, cut, on_read)):
            for result in results:
                writer, names = writers[result.average, result.step]
                for piece in pieces:
                    if piece.name in names:
                        writer.write_part(names[piece.name], piece.start, result.state[piece.name])


def parts_of(snapshots: Snapshots, plan: Plan, layout: Layout, budget: int) -> list[list[Piece]]:
    """The groups of pieces that are averaged in turn: see `average_to_files`."""
    return groups(layout, plan.peak, budget if snapshots.mapped else budget // 2, snapshots.mapped)


def layout_for(snapshots: Snapshots, path: Path, source: Source) -> Layout:
    """What an average at `path` is made of: the model, and the others in the snapshots where its form has them.

    Args:
        source: the snapshot whose form that is.
    """
    others = {name: kind for name, kind in snapshots.others.items() if name in source.others}
    return snapshots.layout | (others if has_others(path, source) else {})
