"""Which snapshots the wanted averages need, and how each is made of them. See `weight_averaging.offline`."""

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from weight_averaging.averages import Average, FollowsRate, SnapshotError
from weight_averaging.averages.checks import check_rate
from weight_averaging.offline.layouts import State
from weight_averaging.offline.passes.memory import Memory
from weight_averaging.offline.passes.one_pass import Pass, Result, Work
from weight_averaging.offline.passes.sums import Accumulation, Recursion, Sum
from weight_averaging.offline.reading.unaveraged import Unchanging

__all__ = ["Plan", "Result"]

Part = TypeVar("Part")


class Plan:
    """Which snapshots the wanted averages need. It stays as it is: each run over those snapshots is one of its own.

    Args:
        wanted: (average, step) pairs: the average as of that update.
        steps: the updates of all snapshots there are.
        float32: results keep float32 where the snapshots have another floating-point type.
        latest: names of floating-point tensors that are not averaged but taken from the latest snapshot, from
            `latest_of`; snapshots must then all have the same names. None: those that
            `weight_averaging.tensor_names.not_to_average` knows, in a stream of whole models, where one snapshot's
            names may have what wrappers add (`module.`, `_orig_mod.`) and another's not.
        learning_rates: by step, for `FollowsRate` (`Snapshots.learning_rates`): as of the update that made it.
        frozen: those of `latest` that training had frozen: a warning tells if they change all the same.
    Raises:
        SnapshotError: an average needs a snapshot that is not among `steps`, or a learning rate that is not known.

    Attributes:
        needed: the steps of the snapshots to feed, in order; a stream may hold others, which are passed over.
        peak: models held at the same time at most, in the type of sums, beside the snapshot being read. Means are kept
            as running sums, or, where these are less than half as many, as the snapshots they are made of.
    """

    def __init__(
        self,
        wanted: Iterable[tuple[Average, int]],
        steps: Sequence[int],
        *,
        float32: bool = False,
        latest: Collection[str] | None = None,
        frozen: Collection[str] = (),
        learning_rates: Mapping[int, float] | None = None,
    ) -> None:
        self.float32 = float32
        self._frozen = frozenset(frozen)
        steps = sorted(steps)
        pairs = sorted(dict.fromkeys(wanted), key=lambda pair: pair[1])
        until = dict(pairs)  # the latest step of each: on its way there a recursion passes the earlier ones
        due: dict[int, list[tuple[Average, int, Accumulation]]] = {}
        means: list[Accumulation] = []
        others: list[Accumulation] = []  # weighted sums, and recursions
        recursions: dict[Average, Accumulation] = {}
        needed: set[int] = set()
        for average, step in pairs:
            members, last = average.members(steps, step), _latest(steps, step)
            needed |= {*members, last}
            one: Accumulation
            if average.is_mean:
                means.append(one := Sum(members, last))
            elif not average.is_recursive:
                others.append(one := Sum(members, last, average.coefficients(len(members))))
            elif average not in recursions:
                others.append(one := _recursion(average, steps, until[average], learning_rates or {}))
                recursions[average] = one
            else:
                one = recursions[average]
            due.setdefault(last, []).append((average, step, one))
        self.needed = sorted(needed)
        held: dict[int, int] = {}
        for one in means:  # ascending: the last one that takes a snapshot needs it longest
            held.update(dict.fromkeys(one.members, one.last))
        in_sums, in_snapshots = _peak(_spans(means)), _peak(held.items())
        # Sums take a snapshot in while it is in the cache; what is held must be read again for every mean.
        if 2 * in_snapshots < in_sums:
            self.peak, running = in_snapshots + _peak(_spans(others)), others
        else:
            self.peak, running, held = in_sums + _peak(_spans(others)), [*others, *means], {}
        self._work = Work(self.needed, due, running, held, latest, float32)

    def run(self, stream: Iterable[tuple[int, State]]) -> Iterator[Result]:
        """Feed snapshots (step, state dict) in the order of steps; results come as soon as they are complete.

        The tensors of a state may be reused once the next is asked for: what is kept of them is copied.

        Raises:
            SnapshotError: snapshots have other names, shapes or types than the first, or weights that are not finite.
                So it is where a snapshot that is needed does not come, or quantised weights change.
        """
        unchanging = Unchanging(self._frozen)
        yield from Pass(self._work, Memory(again=False), unchanging).run(stream)
        unchanging.end()

    def run_parts(
        self, streams: Iterable[tuple[Part, Iterable[tuple[int, State]]]]
    ) -> Iterator[tuple[Part, Iterator[Result]]]:
        """The same for models in parts: for each part a stream of all snapshots, and the results of that part.

        Of a tensor in parts, one that is not finite but constant stays as it is, and the others are averaged.

        Args:
            streams: parts, each with step and weights of all snapshots.
        """
        unchanging, memory = Unchanging(self._frozen), Memory(again=True)
        for part, stream in streams:
            yield part, Pass(self._work, memory, unchanging).run(stream)
        unchanging.end()


def _latest(steps: Sequence[int], until: int) -> int:
    return steps[bisect_right(steps, until) - 1]


def _recursion(average: Average, steps: Sequence[int], until: int, rates: Mapping[int, float]) -> Recursion:
    members = average.members(steps, until)
    if isinstance(average, FollowsRate):
        if lacking := [step for step in members if step not in rates]:
            raise SnapshotError(
                f"{average} follows the learning rate, and that of step {lacking[0]} is not known: it is read from the "
                "state of a torch optimizer or scheduler in a checkpoint, and from a Trainer's trainer_state.json "
                "where that logs the step itself; or give it, Plan(..., learning_rates={step: rate, ...})"
            )
        weights = average.weights([check_rate(rates[step]) for step in members])
    else:
        weights = [average.weight(number) for number in range(2, len(members) + 1)]
    return Recursion(members, _latest(steps, until), weights)


def _spans(accumulations: Iterable[Accumulation]) -> list[tuple[int, int]]:
    """The steps from and to which each of their vectors is there."""
    return [(one.members[0], one.last) for one in accumulations for _ in range(one.count)]


def _peak(spans: Iterable[tuple[int, int]]) -> int:
    """The largest number of closed ranges (first, last) that share a point."""
    events = sorted(event for first, last in spans for event in ((first, -1), (last, 1)))  # a beginning before an end
    most = open_ones = 0
    for _, kind in events:
        open_ones -= kind
        most = max(most, open_ones)
    return most
