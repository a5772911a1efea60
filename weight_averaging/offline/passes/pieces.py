"""Models that go through piece by piece, each piece of all snapshots before the next one.

The sums of a piece stay in the processor's cache from one snapshot to the next, and their memory serves the next piece.
Sums of whole models would go through memory once for every snapshot. Their fresh pages cost the system more than the
arithmetic (docs/results/offline_cost.md).
"""

import collections
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms.source import Source
from weight_averaging.offline.layouts import Layout, State
from weight_averaging.offline.passes.sums import BLOCK, sum_type
from weight_averaging.offline.reading.checksums import Checksums
from weight_averaging.offline.reading.fetching import fetch
from weight_averaging.offline.reading.snapshots import Snapshots
from weight_averaging.offline.remote import stamp_of

# Step, a part of the weights, and what compares it with the checksums of its file when it has been worked on.
Part = tuple[int, State, Callable[[State], None]]

IN_CACHE = 10 << 20  # bytes of a group
AHEAD = 8  # pieces that the system is asked to read beforehand


@dataclass(frozen=True)
class Piece:
    """The elements [start, stop) of a tensor, flattened; `whole` if these are all."""

    name: str
    start: int
    stop: int
    whole: bool

    def of(self, tensor: Tensor) -> Tensor:
        """A view. Of what has two dimensions or more it has two: some checks are for those alone."""
        if self.whole:
            return tensor
        part = tensor.reshape(-1)[self.start : self.stop]
        return part if tensor.ndim < 2 else part.unsqueeze(0)


def groups(layout: Layout, models: int, budget: int, cut: bool) -> list[list[Piece]]:
    """The model cut into groups of pieces of different tensors.

    `models` sums of a group and one snapshot of it fit into `budget` bytes.

    Args:
        cut: groups are as small as the cache, and large tensors are cut. Else a piece is a tensor, and one that does
            not fit alone is a group of its own.
    """
    if cut:
        budget = min(budget, IN_CACHE)
    result: list[list[Piece]] = []
    left = 0
    for name, kind in layout.items():
        numel = torch.Size(kind[0]).numel()
        most = max(budget // (_bytes(kind, models) * BLOCK), 1) * BLOCK if cut else numel
        for start in range(0, max(numel, 1), max(most, 1)):
            piece = Piece(name, start, min(start + most, numel), numel <= most)
            size = (piece.stop - start) * _bytes(kind, models)
            if not result or size > left or start > 0:  # of a tensor a group has one piece
                result.append([])
                left = budget
            result[-1].append(piece)
            left -= size
    return result


def memory(layout: Layout, models: int, cut: list[list[Piece]]) -> int:
    """Bytes that the largest group takes."""
    return max(sum((p.stop - p.start) * _bytes(layout[p.name], models) for p in group) for group in cut)


def sums_of(layout: Layout) -> str:
    """The types that averages of these tensors are summed up in, in words."""
    kinds = {sum_type(dtype) for _, dtype in layout.values() if dtype.is_floating_point or dtype.is_complex}
    return " and ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds)) or "float32"


def _bytes(kind: tuple[tuple[int, ...], torch.dtype], models: int) -> int:
    """Of an element, with `models` sums of it."""
    _, dtype = kind
    return (2 if dtype.is_complex else 1) * sum_type(dtype).itemsize * models + dtype.itemsize


def streams(
    snapshots: Snapshots, steps: Sequence[int], cut: Iterable[list[Piece]], on_read: Callable[[int], object]
) -> Iterator[tuple[list[Piece], Iterator[tuple[int, State]]]]:
    """Each group of pieces, and the stream of (step, that part of the weights), to be read to its end.

    Args:
        on_read: told the number of bytes whenever some have been worked on.
    Raises:
        SnapshotError: at the end, if a file was written to meanwhile: pieces of two models may have come together.
    """
    cut = list(cut)
    everything = [*snapshots.layout, *snapshots.others]
    opened: dict[int, tuple[Source, dict[str, str], Checksums]] = {}
    stamps: dict[int, dict[Path, tuple[int, int, object]]] = {}

    def state(step: int, pieces: list[Piece]) -> tuple[State, Callable[[State], None]]:
        if step not in opened:
            stamps.setdefault(step, _stamps(snapshots.paths[step]))
            source = snapshots.reader(step)
            opened[step] = source, snapshots.originals(source, everything), Checksums(source)
        source, names, checksums = opened[step] if snapshots.mapped else opened.pop(step)
        tensors = source.read([names[piece.name] for piece in pieces])

        def see(part: State) -> None:
            for piece in pieces:
                last = piece.stop == tensors[names[piece.name]].numel()
                checksums.see(names[piece.name], part[piece.name], last)

        return {piece.name: piece.of(tensors[names[piece.name]]) for piece in pieces}, see

    read = ((step, *state(step, pieces)) for pieces in cut for step in steps)
    states = _fetched(read) if snapshots.mapped else read

    def stream() -> Iterator[tuple[int, State]]:
        for _ in steps:
            step, part, see = next(states)
            yield step, part
            see(part)  # while it is in the cache
            on_read(sum(tensor.nbytes for tensor in part.values()))

    for pieces in cut:
        yield pieces, stream()
    for step, before in stamps.items():
        for path, stamp in _stamps(snapshots.paths[step]).items():
            if before.get(path, stamp) != stamp:
                raise SnapshotError(f"{path} changed while it was averaged: average again when nothing writes to it")


def _stamps(path: Path) -> dict[Path, tuple[int, int, object]]:
    """Time of the last change and size of a checkpoint's files; of one that was deleted there is nothing."""
    found = {}
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        with contextlib.suppress(FileNotFoundError):
            about = file.stat()
            found[file] = about.st_mtime_ns, about.st_size, stamp_of(file)
    return found


def _fetched(states: Iterator[Part]) -> Iterator[Part]:
    """The same; a thread asks the system for the pages of those to come, since what it does for them takes time too."""
    waiting: collections.deque[Part] = collections.deque()
    with ThreadPoolExecutor(1, "fetching") as thread:
        for part in states:
            for tensor in part[1].values():
                thread.submit(fetch, tensor)
            waiting.append(part)
            if len(waiting) > AHEAD:
                yield waiting.popleft()
        yield from waiting
