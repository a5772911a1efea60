"""One pass over snapshots: what is held while they come by, and the results. Which ones are needed: `plan`."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weight_averaging.averages import Average, SnapshotError
from weight_averaging.offline.layouts import Layout, State, layout_difference, layout_of
from weight_averaging.offline.passes.memory import Memory
from weight_averaging.offline.passes.sums import BLOCK, Accumulation, mean, sum_type
from weight_averaging.offline.reading.unaveraged import Unchanging, latest_of
from weight_averaging.tensor_names import clean_names
from weight_averaging.torch.model.finite import is_finite


@dataclass(frozen=True)
class Result:
    """The weights of `average` as of update `step`.

    Attributes:
        state: tensors of the snapshots' shapes and types, owned by the caller. Names are those of the latest snapshot.
    """

    average: Average
    step: int
    state: dict[str, Tensor]


@dataclass(frozen=True)
class Work:
    """What a pass has to do. It changes nothing of it.

    Args:
        needed: the steps of the snapshots that must come, in order.
        due: (average, step, how it is made) of those that are complete with a snapshot, by its step.
        running: what takes snapshots in as they come; all else is the mean of snapshots that are held.
        held_until: the step until which a snapshot is held, by its own; empty if none is.
        latest, float32: as of `Plan`.
    """

    needed: Sequence[int]
    due: Mapping[int, Sequence[tuple[Average, int, Accumulation]]]
    running: Sequence[Accumulation]
    held_until: Mapping[int, int]
    latest: Collection[str] | None
    float32: bool


class Pass:
    """All that is kept while snapshots, or a part of each, come by once.

    Args:
        memory: may serve the pass over the next part again.
        unchanging: looks at what is not averaged.
    """

    def __init__(self, work: Work, memory: Memory, unchanging: Unchanging) -> None:
        self._work, self._memory, self._unchanging = work, memory, unchanging
        self._vectors: dict[Accumulation, dict[str, list[Tensor]]] = {one: {} for one in work.running}
        self._results_left = Counter(one for due in work.due.values() for _, _, one in due)
        self._held: dict[int, dict[str, Tensor]] = {}  # snapshots, in the type of sums
        self._layout: Layout | None = None
        self._latest: Collection[str] = ()
        self._constant: dict[str, Tensor] = {}  # not finite: a mask of infinities, say

    def run(self, stream: Iterable[tuple[int, State]]) -> Iterator[Result]:
        """Take the snapshots in; see `Plan.run`."""
        self._unchanging.begin_part()
        expected = iter(self._work.needed)
        wanted = next(expected, None)
        for step, state in stream:
            if wanted is None or step < wanted:
                continue
            if step > wanted:
                raise SnapshotError(f"the snapshot of step {wanted} did not come before that of step {step}")
            names = list(state)
            if self._work.latest is None:
                state = dict(zip(clean_names(names), state.values()))
            self._check_layout(step, state)
            self._take(step, state)
            for average, at, accumulation in self._work.due.get(step, ()):
                averaged = self._finish(accumulation, state)
                yield Result(average, at, dict(zip(names, averaged.values())))
            for old in [s for s in self._held if self._work.held_until[s] <= step]:
                self._memory.give(self._held.pop(old).values())
            wanted = next(expected, None)
        if wanted is not None:
            raise SnapshotError(f"the snapshot of step {wanted} is needed and did not come")

    def _check_layout(self, step: int, state: State) -> None:
        layout = layout_of(state)
        if self._layout is None:
            self._layout = layout
            self._latest = latest_of(layout) if self._work.latest is None else set(self._work.latest)
        elif difference := layout_difference(self._layout, layout):
            first = self._work.needed[0]
            raise SnapshotError(f"the snapshot of step {step} does not fit that of step {first}: {difference}")

    def _take(self, step: int, state: State) -> None:
        active = [one for one in self._work.running if one.takes(step)]
        held = self._held.setdefault(step, {}) if step in self._work.held_until else None
        for name, tensor in state.items():
            if not self._is_averaged(name, tensor):
                self._unchanging.see(step, name, tensor, name in self._latest)
                continue
            if name in self._constant:
                if not torch.equal(self._constant[name], tensor):
                    raise SnapshotError(f"step {step}: {name} is not finite, and not constant either")
                continue
            flat = _flat(tensor)
            vectors = [self._vectors_of(one, name, flat) for one in active]
            copy = None
            if held is not None:
                copy = held[name] = self._memory.take(flat.numel(), sum_type(flat.dtype), flat.device)
            for start in range(0, flat.numel(), BLOCK):
                stop = min(start + BLOCK, flat.numel())
                values = self._memory.to_sum(flat[start:stop])
                if not is_finite(values):
                    self._make_constant(step, name, tensor)
                    break
                if copy is not None:
                    copy[start:stop].copy_(values)
                for one, own in zip(active, vectors):
                    one.take(step, [vector[start:stop] for vector in own], values)

    def _vectors_of(self, accumulation: Accumulation, name: str, flat: Tensor) -> list[Tensor]:
        own = self._vectors[accumulation]
        if name not in own:
            own[name] = [
                self._memory.take(flat.numel(), sum_type(flat.dtype), flat.device) for _ in range(accumulation.count)
            ]
        return own[name]

    def _is_averaged(self, name: str, tensor: Tensor) -> bool:
        return name not in self._latest and (tensor.dtype.is_floating_point or tensor.dtype.is_complex)

    def _make_constant(self, step: int, name: str, tensor: Tensor) -> None:
        """No average of it, as online."""
        if step != self._work.needed[0] or bool(tensor.isnan().any()):
            raise SnapshotError(
                f"step {step}: {name} holds a NaN or an infinity; leave out the snapshots from there on, or ask for "
                "an average at an earlier step"
            )
        self._constant[name] = tensor.clone()

    def _finish(self, accumulation: Accumulation, state: State) -> dict[str, Tensor]:
        """The average beside the snapshot `state`, with which it is complete."""
        result = {}
        self._results_left[accumulation] -= 1
        final = self._results_left[accumulation] == 0
        own, float32, copy = self._vectors.get(accumulation), self._work.float32, self._memory.again
        for name, tensor in state.items():
            if name in self._constant or not self._is_averaged(name, tensor):
                floating = float32 and tensor.dtype.is_floating_point
                result[name] = tensor.to(torch.float32 if floating else tensor.dtype, copy=True)
                continue
            if own is None:
                value = mean([self._held[member][name] for member in accumulation.members])
            else:
                value = accumulation.result(own[name], final)
            if tensor.dtype.is_complex:
                result[name] = torch.view_as_complex(value.view(*tensor.shape, 2)).to(tensor.dtype, copy=copy)
            else:
                result[name] = value.view(tensor.shape).to(torch.float32 if float32 else tensor.dtype, copy=copy)
        if final and own is not None:
            for vectors in own.values():
                self._memory.give(vectors)
            own.clear()
        return result


def _flat(tensor: Tensor) -> Tensor:
    """A view where that is possible; complex numbers as pairs of real ones."""
    tensor = tensor.detach()
    return (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).reshape(-1)
