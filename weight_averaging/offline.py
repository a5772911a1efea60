"""Averages of saved weights: a stream of snapshots in, any number of averages out, each snapshot read once.

    from weight_averaging import offline

    wanted = [(offline.LAWA(window=20, interval=64), 6400), (offline.EMA(decay=0.9, interval=64), 6400)]
    plan = offline.Plan(wanted, steps=range(64, 6401, 64))
    for result in plan.run((step, torch.load(f"step_{step}.pt", weights_only=True)) for step in plan.needed):
        torch.save(result.state, ...)

LAWA and EMA are, bit for bit, what the online averagers of `weight_averaging.torch` hold at that step: snapshots are
taken as float32 and the operations come in the same order. Floating-point buffers (batch-norm statistics) are averaged
like parameters, the averagers' default; integers come from the latest snapshot. Where they differ: weights that are not
finite are an error here, while a training run goes on without them.

Reading snapshot files: `weight_averaging.snapshot_files`.
"""

import abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weight_averaging.averages import EMA, LAWA, Average, Power, SnapshotError, Tail
from weight_averaging.safetensors_files import StoredTensor
from weight_averaging.torch.mean import accumulators, add, mean_of, pairwise_mean
from weight_averaging.torch.weights import clean_names, is_finite

__all__ = ["EMA", "LAWA", "Average", "Plan", "Power", "Result", "SnapshotError", "Tail"]

State = Mapping[str, Tensor | StoredTensor]
Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]

# float32 elements that are worked on at a time: 1 MiB stays in a core's cache while every average takes it in.
BLOCK = 1 << 18


@dataclass(frozen=True)
class Result:
    """The weights of `average` as of update `step`: tensors of the snapshots' shapes and types, owned by the caller.

    Names are without `module.` and `_orig_mod.`.
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
    Raises:
        SnapshotError: an average needs a snapshot that is not among `steps`.

    Attributes:
        needed: the steps of the snapshots to feed, in order; a stream may hold others, which are passed over.
        peak: float32 models held at the same time at most, beside the snapshot being read. Means are kept as running
            sums, or, where these are less than half as many, as the snapshots they are made of.
    """

    def __init__(self, wanted: Iterable[tuple[Average, int]], steps: Sequence[int], *, float32: bool = False) -> None:
        self.float32 = float32
        steps = sorted(steps)
        self._due: dict[int, list[tuple[Average, int]]] = {}  # by the latest snapshot up to the wanted step
        sums: list[_Sum] = []
        recursions: dict[Average, _Recursion] = {}
        self._tracks: dict[tuple[Average, int], _Track] = {}
        needed: set[int] = set()
        for average, step in sorted(dict.fromkeys(wanted), key=lambda pair: pair[1]):
            members = average.members(steps, step)
            latest = max(s for s in steps if s <= step)
            needed |= {*members, latest}
            self._due.setdefault(latest, []).append((average, step))
            if average.is_mean:
                sums.append(_Sum(members, latest))
                self._tracks[average, step] = sums[-1]
            else:
                track = recursions.setdefault(average, _Recursion())
                track.extend(members, average.weights(members), latest)
                self._tracks[average, step] = track
        self.needed = sorted(needed)
        spans = [(track.first, track.last) for track in sums for _ in range(track.count)]
        held = {step: max((t.last for t in sums if step in t.members), default=0) for step in self.needed}
        self._held_until = {step: last for step, last in held.items() if last}
        running, queued = _peak(spans), _peak(list(self._held_until.items()))
        # Sums take a snapshot in while it is in the cache; what is held must be read again for every mean.
        self._queued = 2 * queued < running
        self._running: list[_Track] = [*recursions.values(), *([] if self._queued else sums)]
        self.peak = (queued if self._queued else running) + _peak(
            [(track.first, track.last) for track in recursions.values()]
        )

    def run(self, stream: Iterable[tuple[int, State]]) -> Iterator[Result]:
        """Feed snapshots (step, state dict) in the order of steps; results come as soon as they are complete.

        The tensors of a state may be reused once the next is asked for: what is kept of them is copied.

        Raises:
            SnapshotError: snapshots with other names, shapes or types than the first, or weights that are not finite,
                or a snapshot that is needed does not come.
            TypeError: a tensor is complex.
        """
        held: dict[int, dict[str, Tensor]] = {}
        expected = iter(self.needed)
        wanted = next(expected, None)
        self._layout: Layout | None = None
        self._constant: dict[str, Tensor] = {}
        for track in self._tracks.values():
            track.values.clear()
            track.results = sum(other is track for other in self._tracks.values())
        for step, state in stream:
            if wanted is None or step < wanted:
                continue
            if step > wanted:
                raise SnapshotError(f"the snapshot of step {wanted} did not come before that of step {step}")
            state = dict(zip(clean_names(list(state)), state.values()))
            self._check_layout(step, state)
            self._take(step, state, held)
            for average, at in self._due.get(step, ()):
                yield Result(average, at, self._finish(self._tracks[average, at], step, state, held))
            for old in [s for s in held if self._held_until[s] <= step]:
                del held[old]
            wanted = next(expected, None)
        if wanted is not None:
            raise SnapshotError(f"the snapshot of step {wanted} is needed and did not come")

    def _check_layout(self, step: int, state: State) -> None:
        layout = layout_of(state)
        if self._layout is None:
            self._layout = layout
        elif difference := layout_difference(self._layout, layout):
            raise SnapshotError(f"the snapshot of step {step} does not fit that of step {self.needed[0]}: {difference}")

    def _take(self, step: int, state: State, held: dict[int, dict[str, Tensor]]) -> None:
        active = [track for track in self._running if track.takes(step)]
        hold = self._queued and step in self._held_until
        if hold:
            held[step] = {}
        for name, tensor in state.items():
            if not tensor.dtype.is_floating_point:
                if tensor.dtype.is_complex:
                    raise TypeError(f"{name} is {tensor.dtype}; only real floating-point can be averaged")
                continue
            if name in self._constant:
                if not torch.equal(self._constant[name], _whole(tensor)):
                    raise SnapshotError(f"step {step}: {name} is not finite, and not constant either")
                continue
            size, device = tensor.numel(), _device(tensor)
            flat = tensor if isinstance(tensor, StoredTensor) else tensor.detach().reshape(-1)
            targets = [track.targets(name, size, device) for track in active]
            copy = held[step].setdefault(name, _vector(size, device)) if hold else None
            for start in range(0, size, BLOCK):
                stop = min(start + BLOCK, size)
                piece = flat.piece(start, stop) if isinstance(flat, StoredTensor) else flat[start:stop]
                values = piece.to(torch.float32)
                if not is_finite(values):
                    self._make_constant(step, name, _whole(tensor))
                    break
                if copy is not None:
                    copy[start:stop].copy_(values)
                for track, target in zip(active, targets):
                    track.take(step, [vector[start:stop] for vector in target], values)

    def _make_constant(self, step: int, name: str, tensor: Tensor) -> None:
        """A mask of infinities, say: no average of it, as online."""
        if step != self.needed[0] or bool(tensor.isnan().any()):
            raise SnapshotError(
                f"step {step}: {name} holds a NaN or an infinity; leave out the snapshots from there on, or ask for "
                "an average at an earlier step"
            )
        self._constant[name] = tensor.clone()

    def _finish(
        self, track: "_Track", step: int, state: State, held: dict[int, dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        result = {}
        track.results -= 1
        final = track.results == 0
        for name, tensor in state.items():
            if name in self._constant or not tensor.dtype.is_floating_point:
                result[name] = _whole(tensor).clone()
                continue
            if isinstance(track, _Sum) and self._queued:
                mean = _mean([held[member][name] for member in track.members])
            else:
                mean = track.value(name, final)
            result[name] = mean.view(tensor.shape).to(torch.float32 if self.float32 else tensor.dtype)
        if final:
            track.values.clear()
        return result


class _Track(abc.ABC):
    """What is kept of one average along the pass: flat float32 vectors by name, from snapshot `first` to `last`."""

    count = 1  # vectors a tensor

    def __init__(self) -> None:
        self.values: dict[str, list[Tensor]] = {}
        self.first = self.last = 0
        self.results = 0  # that are still to come from it

    @abc.abstractmethod
    def takes(self, step: int) -> bool:
        """Whether the snapshot of `step` is part of the average."""

    @abc.abstractmethod
    def take(self, step: int, targets: list[Tensor], values: Tensor) -> None:
        """Take the float32 `values` of a block into the same block of the track's vectors, `targets`."""

    @abc.abstractmethod
    def value(self, name: str, final: bool) -> Tensor:
        """The average of a tensor, flat; the track's own memory only if it is final."""

    def targets(self, name: str, size: int, device: torch.device) -> list[Tensor]:
        if name not in self.values:
            self.values[name] = [_vector(size, device) for _ in range(self.count)]
        return self.values[name]


class _Sum(_Track):
    """The sum of the members, oldest first, in the order in which LAWA adds them."""

    def __init__(self, members: list[int], last: int) -> None:
        super().__init__()
        self.members = members
        self._index = {step: index for index, step in enumerate(members)}
        self.first, self.last = members[0], last
        self.count = accumulators(len(members))

    def takes(self, step: int) -> bool:
        return step in self._index

    def take(self, step: int, targets: list[Tensor], values: Tensor) -> None:
        add(targets, self._index[step], values)

    def value(self, name: str, final: bool) -> Tensor:
        return mean_of(self.values[name], len(self.members))


class _Recursion(_Track):
    """value <- lerp(value, snapshot, weight), from the first snapshot on."""

    def __init__(self) -> None:
        super().__init__()
        self._weights: dict[int, float] = {}

    def extend(self, members: list[int], weights: list[float], last: int) -> None:
        """Go on to `last`; the members are those so far and later ones."""
        self.first, self.last = members[0], last
        self._weights = dict(zip(members, weights, strict=True))

    def takes(self, step: int) -> bool:
        return step in self._weights

    def take(self, step: int, targets: list[Tensor], values: Tensor) -> None:
        if step == self.first:
            targets[0].copy_(values)
        else:
            targets[0].lerp_(values, self._weights[step])

    def value(self, name: str, final: bool) -> Tensor:
        return self.values[name][0] if final else self.values[name][0].clone()


def _vector(size: int, device: torch.device) -> Tensor:
    return torch.empty(size, dtype=torch.float32, device=device)


def _device(tensor: Tensor | StoredTensor) -> torch.device:
    return torch.device("cpu") if isinstance(tensor, StoredTensor) else tensor.device


def _whole(tensor: Tensor | StoredTensor) -> Tensor:
    return tensor.load() if isinstance(tensor, StoredTensor) else tensor


def _mean(vectors: list[Tensor]) -> Tensor:
    mean = torch.empty_like(vectors[0])
    scratch = [mean[:BLOCK].clone() for _ in range(1, accumulators(len(vectors)))]
    for start in range(0, mean.numel(), BLOCK):
        block = mean[start : start + BLOCK]
        sums = [block, *(vector[: block.numel()] for vector in scratch)]
        pairwise_mean([vector[start : start + BLOCK] for vector in vectors], sums)
    return mean


def _peak(spans: list[tuple[int, int]]) -> int:
    """The largest number of closed ranges (first, last) that share a point."""
    return max((sum(a <= first <= b for a, b in spans) for first in {first for first, _ in spans}), default=0)


def layout_of(state: State) -> Layout:
    """Shapes and types by name."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}


def layout_difference(first: Layout, other: Layout) -> str:
    """What makes `other` unlike `first`, in a few words; empty if nothing does."""
    for name, (shape, dtype) in first.items():
        if name not in other:
            return f"it has no {name}"
        if other[name] != (shape, dtype):
            return f"{name} is {_shown(*other[name])}, not {_shown(shape, dtype)}"
    extra = [name for name in other if name not in first]
    return f"it has {extra[0]} besides" if extra else ""


def _shown(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"
