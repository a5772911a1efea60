"""Averages from snapshots to files, with memory bounded: models go piece by piece."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event, Lock

import torch

from weight_averaging.averages import Average
from weight_averaging.offline.forms.source import Source
from weight_averaging.offline.layouts import Layout
from weight_averaging.offline.passes.pieces import Piece, dealt, groups, streams
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
    threads: int = 1,
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
        threads: how many work at the same time, each on other tensors, where files can be mapped. One waits for the
            disk while another computes.
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
        shares = shares_of(snapshots, plan, chosen, budget, threads)
        locks = {key: Lock() for key in writers}
        unchanging = plan.unchanging()

        def work(cut: list[list[Piece]], read: Callable[[int], object]) -> None:
            for pieces, results in plan.run_parts(streams(snapshots, plan.needed, cut, read), unchanging):
                for result in results:
                    key = result.average, result.step
                    writer, names = writers[key]
                    with locks[key]:
                        for piece in pieces:
                            if piece.name in names:
                                writer.write_part(names[piece.name], piece.start, result.state[piece.name])

        at_once(work, shares, on_read)
        unchanging.end()


def shares_of(snapshots: Snapshots, plan: Plan, layout: Layout, budget: int, threads: int) -> list[list[list[Piece]]]:
    """The groups of pieces that each thread works on, one group at a time: see `average_to_files`."""
    if not snapshots.mapped:
        return [groups(layout, plan.peak, budget // 2, cut=False)]
    return dealt(groups(layout, plan.peak, budget // threads, cut=True), threads)


class _Stopped(Exception):
    """Another thread has failed."""


def at_once(
    work: Callable[[list[list[Piece]], Callable[[int], object]], None],
    shares: Sequence[list[list[Piece]]],
    on_read: Callable[[int], object],
) -> None:
    """Work on each share in a thread of its own. What ends one, or this thread, ends all.

    Args:
        work: is given a share, and what it has to tell whenever it has read some bytes.
        on_read: is told these, by one thread at a time.
    """
    if len(shares) == 1:
        work(shares[0], on_read)
        return
    telling, stop = Lock(), Event()

    def read(count: int) -> None:
        if stop.is_set():
            raise _Stopped
        with telling:
            on_read(count)

    with ThreadPoolExecutor(max(len(shares), 1), "averaging") as pool:
        try:  # from the first one on
            running = [pool.submit(work, share, read) for share in shares]
            wait(running, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()  # of those that are through it ends nothing
    for error in [one.exception() for one in running]:
        if error is not None and not isinstance(error, _Stopped):
            raise error


def layout_for(snapshots: Snapshots, path: Path, source: Source) -> Layout:
    """What an average at `path` is made of: the model, and the others in the snapshots where its form has them.

    Args:
        source: the snapshot whose form that is.
    """
    others = {name: kind for name, kind in snapshots.others.items() if name in source.others}
    return snapshots.layout | (others if has_others(path, source) else {})
