"""A plan of averages over saved weights, and one pass over the snapshots it needs. See `weight_averaging.offline`."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from weight_averaging.averages import Average, SnapshotError
from weight_averaging.offline.layouts import Layout, State, layout_difference, layout_of
from weight_averaging.offline.passes.sums import BLOCK, Memory, Recursion, Sum, Track, mean
from weight_averaging.offline.reading.unaveraged import Unchanging, latest_of
from weight_averaging.tensor_names import clean_names
from weight_averaging.torch.model.finite import is_finite

Part = TypeVar("Part")


@dataclass(frozen=True)
class Result:
    """The weights of `average` as of update `step`: tensors of the snapshots' shapes and types, owned by the caller.

    Names are those of the latest snapshot.
    """

    average: Average
    step: int
    state: dict[str, Tensor]


class Plan:
    """Which snapshots the wanted averages need, and one pass over those.

    Args:
        wanted: (average, step) pairs: the average as of that update.
        steps: the updates of all snapshots there are.
        float32: results keep float32 where the snapshots have another floating-point type.
        latest: names of floating-point tensors that are not averaged but taken from the latest snapshot, from
            `latest_of`; snapshots must then all have the same names. None: those that
            `weight_averaging.tensor_names.not_to_average` knows, in a stream of whole models, where one snapshot's
            names may have what wrappers add (`module.`, `_orig_mod.`) and another's not.
        frozen: those of `latest` that training had frozen: a warning tells if they change all the same.
    Raises:
        SnapshotError: an average needs a snapshot that is not among `steps`.

    Attributes:
        needed: the steps of the snapshots to feed, in order; a stream may hold others, which are passed over.
        peak: float32 models held at the same time at most, beside the snapshot being read. Means are kept as running
            sums, or, where these are less than half as many, as the snapshots they are made of.
    """

    def __init__(
        self,
        wanted: Iterable[tuple[Average, int]],
        steps: Sequence[int],
        *,
        float32: bool = False,
        latest: Collection[str] | None = None,
        frozen: Collection[str] = (),
    ) -> None:
        self.float32 = float32
        self._asked_latest = latest
        self._unchanging = Unchanging(frozen)
        steps = sorted(steps)
        self._due: dict[int, list[tuple[Average, int]]] = {}  # by the latest snapshot up to the wanted step
        sums: list[Sum] = []
        others: list[Track] = []  # weighted sums, and recursions
        recursions: dict[Average, Recursion] = {}
        self._tracks: dict[tuple[Average, int], Track] = {}
        needed: set[int] = set()
        for average, step in sorted(dict.fromkeys(wanted), key=lambda pair: pair[1]):
            members = average.members(steps, step)
            last = max(s for s in steps if s <= step)
            needed |= {*members, last}
            self._due.setdefault(last, []).append((average, step))
            if average.is_mean:
                sums.append(Sum(members, last))
                self._tracks[average, step] = sums[-1]
            elif not average.is_recursive:
                others.append(Sum(members, last, average.coefficients(len(members))))
                self._tracks[average, step] = others[-1]
            else:
                track = recursions.setdefault(average, Recursion())
                track.extend(members, [average.weight(k) for k in range(1, len(members) + 1)], last)
                self._tracks[average, step] = track
        others += recursions.values()
        self.needed = sorted(needed)
        spans = [(track.first, track.last) for track in sums for _ in range(track.count)]
        held = {step: max((t.last for t in sums if step in t.members), default=0) for step in self.needed}
        self._held_until = {step: last for step, last in held.items() if last}
        running, queued = _peak(spans), _peak(list(self._held_until.items()))
        # Sums take a snapshot in while it is in the cache; what is held must be read again for every mean.
        self._queued = 2 * queued < running
        self._running: list[Track] = [*others, *([] if self._queued else sums)]
        self.peak = (queued if self._queued else running) + _peak(
            [(track.first, track.last) for track in others for _ in range(track.count)]
        )

    def run(self, stream: Iterable[tuple[int, State]]) -> Iterator[Result]:
        """Feed snapshots (step, state dict) in the order of steps; results come as soon as they are complete.

        The tensors of a state may be reused once the next is asked for: what is kept of them is copied.

        Raises:
            SnapshotError: snapshots with other names, shapes or types than the first, or weights that are not finite,
                or a snapshot that is needed does not come, or quantised weights that change.
        """
        self._unchanging.begin()
        yield from self._pass(stream, Memory(again=False))
        self._unchanging.end()

    def run_parts(
        self, streams: Iterable[tuple[Part, Iterable[tuple[int, State]]]]
    ) -> Iterator[tuple[Part, Iterator[Result]]]:
        """The same for models in parts: for each part a stream of all snapshots, and the results of that part.

        Of a tensor in parts, one that is not finite but constant stays as it is, and the others are averaged.
        """
        self._unchanging.begin()
        memory = Memory(again=True)
        for part, stream in streams:
            yield part, self._pass(stream, memory)
        self._unchanging.end()

    def _pass(self, stream: Iterable[tuple[int, State]], memory: Memory) -> Iterator[Result]:
        self._memory = memory
        held: dict[int, dict[str, Tensor]] = {}
        expected = iter(self.needed)
        wanted = next(expected, None)
        self._layout: Layout | None = None
        self._constant: dict[str, Tensor] = {}
        self._unchanging.begin_part()
        for track in self._tracks.values():
            track.values.clear()
            track.results = sum(other is track for other in self._tracks.values())
        for step, state in stream:
            if wanted is None or step < wanted:
                continue
            if step > wanted:
                raise SnapshotError(f"the snapshot of step {wanted} did not come before that of step {step}")
            names = list(state)
            if self._asked_latest is None:
                state = dict(zip(clean_names(names), state.values()))
            self._check_layout(step, state)
            self._take(step, state, held)
            for average, at in self._due.get(step, ()):
                averaged = self._finish(self._tracks[average, at], step, state, held)
                yield Result(average, at, dict(zip(names, averaged.values())))
            for old in [s for s in held if self._held_until[s] <= step]:
                memory.give(held.pop(old).values())
            wanted = next(expected, None)
        if wanted is not None:
            raise SnapshotError(f"the snapshot of step {wanted} is needed and did not come")

    def _check_layout(self, step: int, state: State) -> None:
        layout = layout_of(state)
        if self._layout is None:
            self._layout = layout
            self._latest = latest_of(layout) if self._asked_latest is None else set(self._asked_latest)
        elif difference := layout_difference(self._layout, layout):
            raise SnapshotError(f"the snapshot of step {step} does not fit that of step {self.needed[0]}: {difference}")

    def _take(self, step: int, state: State, held: dict[int, dict[str, Tensor]]) -> None:
        active = [track for track in self._running if track.takes(step)]
        hold = self._queued and step in self._held_until
        if hold:
            held[step] = {}
        for name, tensor in state.items():
            if not self._is_averaged(name, tensor):
                self._unchanging.see(step, name, tensor, name in self._latest)
                continue
            if name in self._constant:
                if not torch.equal(self._constant[name], tensor):
                    raise SnapshotError(f"step {step}: {name} is not finite, and not constant either")
                continue
            flat = _flat(tensor)
            size, device = flat.numel(), flat.device
            targets = [track.targets(name, size, device, self._memory) for track in active]
            copy = held[step].setdefault(name, self._memory.take(size, device)) if hold else None
            for start in range(0, size, BLOCK):
                stop = min(start + BLOCK, size)
                values = self._memory.float32(flat[start:stop])
                if not is_finite(values):
                    self._make_constant(step, name, tensor)
                    break
                if copy is not None:
                    copy[start:stop].copy_(values)
                for track, target in zip(active, targets):
                    track.take(step, [vector[start:stop] for vector in target], values)

    def _is_averaged(self, name: str, tensor: Tensor) -> bool:
        return name not in self._latest and (tensor.dtype.is_floating_point or tensor.dtype.is_complex)

    def _make_constant(self, step: int, name: str, tensor: Tensor) -> None:
        """A mask of infinities, say: no average of it, as online."""
        if step != self.needed[0] or bool(tensor.isnan().any()):
            raise SnapshotError(
                f"step {step}: {name} holds a NaN or an infinity; leave out the snapshots from there on, or ask for "
                "an average at an earlier step"
            )
        self._constant[name] = tensor.clone()

    def _finish(self, track: "Track", step: int, state: State, held: dict[int, dict[str, Tensor]]) -> dict[str, Tensor]:
        result = {}
        track.results -= 1
        final = track.results == 0
        for name, tensor in state.items():
            if name in self._constant or not self._is_averaged(name, tensor):
                floating = self.float32 and tensor.dtype.is_floating_point
                result[name] = tensor.to(torch.float32 if floating else tensor.dtype, copy=True)
                continue
            if isinstance(track, Sum) and track not in self._running:
                value = mean([held[member][name] for member in track.members])
            else:
                value = track.value(name, final)
            if tensor.dtype.is_complex:
                result[name] = torch.view_as_complex(value.view(*tensor.shape, 2)).to(
                    tensor.dtype, copy=self._memory.again
                )
            else:
                dtype = torch.float32 if self.float32 else tensor.dtype
                result[name] = value.view(tensor.shape).to(dtype, copy=self._memory.again)
        if final:
            for vectors in track.values.values():
                self._memory.give(vectors)
            track.values.clear()
        return result


def _flat(tensor: Tensor) -> Tensor:
    """A view where that is possible; complex numbers as pairs of real ones."""
    tensor = tensor.detach()
    return (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).reshape(-1)


def _peak(spans: list[tuple[int, int]]) -> int:
    """The largest number of closed ranges (first, last) that share a point."""
    return max((sum(a <= first <= b for a, b in spans) for first in {first for first, _ in spans}), default=0)
