"""Taking snapshots of a model in training, which may change on the way."""

import logging
import threading
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from weight_averaging.averages import Average
from weight_averaging.averages.average import all_along_training
from weight_averaging.averages.checks import tell_of_dead_zone
from weight_averaging.averages.schedule import is_due, missed
from weight_averaging.placement import promise
from weight_averaging.torch.model.changes import Change
from weight_averaging.torch.model.elsewhere import Elsewhere
from weight_averaging.torch.model.finite import Verdict, all_finite, defers, finite_later, squares
from weight_averaging.torch.model.frozen_probe import FrozenProbe
from weight_averaging.torch.model.ranks import Ranks, together
from weight_averaging.torch.model.spare_copy import SpareCopy
from weight_averaging.torch.model.tensors import locked, plain_tensors
from weight_averaging.torch.model.weights import LiveWeights
from weight_averaging.torch.options import Options, groups_of
from weight_averaging.torch.tracks.make import TrackMaker
from weight_averaging.torch.tracks.track import Track

logger = logging.getLogger("weight_averaging")


class Collector:
    """The tracks of a model, what feeds them, and the average that is shown of them.

    Args:
        averages: those that are followed.
        options: all of them.
        others: ranks of the model_parallel_group, if there is one.
    Raises:
        As `Averager`.
    """

    _total: int | None = None  # updates of the run that the average was made for

    @plain_tensors
    def __init__(
        self, model: nn.Module, averages: Iterable[Average], options: Options, others: Elsewhere | None = None
    ) -> None:
        self.averages = all_along_training(averages)
        self.buffers = options["buffers"]
        self._placement, self._check_finite = options["placement"], options["check_finite"]
        self.step = 0  # the last update seen
        self._learning_rate: float | None = None  # of that update, where it was told
        self._initial = False  # whether update(0) has come
        self._model = model
        chosen = options["include"], options["exclude"], options["dtype"], options["masters"]
        self._weights = LiveWeights(model, self.buffers == "average", *chosen, others)
        if self._weights.dtype == torch.float32:
            for average in self.averages:
                tell_of_dead_zone(str(average), average.dead_zone, "one with dtype=torch.float64")
        self._spare = promise(SpareCopy(self._weights))
        logger.info("%s of %s: %s", self.name, type(model).__name__, self._weights.selected)
        tensors = self._weights.global_tensors() or model.parameters()  # of a part without any to average its meshes
        self._ranks = Ranks(*groups_of(options), tensors, model.modules())
        self._frozen = FrozenProbe()
        self._said: set[str] = set()
        self._begun = False  # whether the snapshot under way has changed anything yet
        self._lock = threading.RLock()  # evaluations may copy the average from a thread of their own
        self._refused, self._refusing = 0, False  # snapshots due and not finite, and whether the last one was
        self._pending: tuple[int, list[Track], Verdict] | None = None  # a snapshot that may turn out not to be
        self._selected = self.averages[0]  # of which the average is shown
        self._make_tracks()

    def _make_tracks(self) -> None:
        """Make the tracks, empty, where the model is now."""
        self._spare.reserve()  # to show that it fits
        maker = TrackMaker(self._spare, self._ranks, self._placement, self._defers)
        self._track_of = maker.make(self.averages)
        self._tracks = list(dict.fromkeys(self._track_of.values()))
        self._spare.release()

    @property
    def name(self) -> str:
        """Of messages and saved states."""
        return type(self).__name__

    @property
    def interval(self) -> int:
        """Updates between the snapshots of the average that is shown."""
        return self._shown.interval

    @property
    def start(self) -> int:
        """The first update whose weights may be collected."""
        return self._shown.start if len(self.averages) == 1 else 1

    @property
    def _shown(self) -> Track:
        """The track that the average of a swap comes from."""
        return self._track_of[self._selected]

    @property
    def ready(self) -> bool:
        """Whether there is an average to swap in."""
        self._settle()
        return len(self._shown.steps) >= self._selected.needed

    @property
    def snapshot_steps(self) -> list[int]:
        """The updates whose snapshots are held (a window), or the last one taken in (an EMA); oldest first."""
        self._settle()
        return list(self._shown.steps)

    def _pass(self, step: int) -> bool:
        """Go on to update `step`. Whether a snapshot was due and collected."""
        if self._weights.masters_unread:
            together(self._ranks.parts, self._weights.check_masters)
        last, self.step = self.step, step
        if self._total is not None and step > 2 * self._total:
            self._say(
                logging.WARNING,
                f"update({step}): the run is more than twice as long as the total_updates={self._total} of for_run, so "
                "the average covers a smaller share of it: pass the number of optimizer updates of the whole run",
                "longer",
            )
        if last and step > last + 1:
            self._say_missed(last, step)
        return self._collect(step) if self._due(step) else False

    @property
    def _waits_for_initial(self) -> bool:
        """Whether an average begins at the initial weights, and has not been shown them."""
        return not self._initial and any(track.start == 0 and not track.count for track in self._tracks)

    def _due(self, step: int) -> list[Track]:
        return [track for track in self._tracks if is_due(step, track.interval, track.start)]

    def _say_missed(self, last: int, step: int) -> None:
        for track in self._tracks:
            if passed := missed(last, step, track.interval, track.start):
                self._say(
                    logging.WARNING,
                    f"update({step}) came after update({last}), and the snapshot due after update {passed} was missed: "
                    f"they are taken at multiples of the interval, {track.interval}, where update is called. Call it "
                    f"after every optimizer update, or choose an interval that is a multiple of {step - last}",
                    "missed",
                )

    @locked
    def _collect(self, step: int) -> bool:
        self._settle()
        self._look()
        due = self._due(step)  # a model on another device has new tracks
        for track in due:
            track.learning_rate = self._learning_rate
        self._begun = False
        try:
            verdict = self._take_later(due) if self._defers else None
            collected = verdict is not None or self._take(due)
        except BaseException:  # Ctrl-C between two blocks, say
            self._complete(due, step)
            raise
        if collected:
            for track in due:
                track.taken(step)
            self._frozen.begin(self._model, self._weights.selected)
        if verdict is not None:
            self._pending = (step, due, verdict)
        else:
            self._judged(step, due, collected, "those of another rank")
        return collected

    @property
    def check_finite(self) -> bool:
        """As it was given: whether windows have a spare vector was settled with it."""
        return self._check_finite

    @property
    def _defers(self) -> bool:
        """Whether a snapshot is taken before it is known to be finite."""
        return self._check_finite and defers(self._weights.device)

    def _settle(self) -> None:
        """Know whether the last snapshot was finite, and if not, be as if it had never been taken.

        Before the next one, and before anything that depends on what the tracks hold.
        """
        if self._pending is not None:
            (step, due, verdict), self._pending = self._pending, None
            good = verdict.is_good()
            for track in due:
                track.keep() if good else track.drop()
            self._judged(step, due, good, "finite again by now, or those of another rank")

    def _judged(self, step: int, due: list[Track], good: bool, otherwise: str) -> None:
        if not good and not self._refusing:  # once, not at every snapshot of a run that is lost
            held, name = due[0].steps, self._weights.not_finite() or otherwise
            stays = f"the average stays that of step {held[-1]}" if held else "there is no average yet"
            logger.warning("step %d: weights are not finite and are not collected (%s); %s", step, name, stays)
        self._refusing, self._refused = not good, self._refused + (not good)

    def _take_later(self, due: list[Track]) -> Verdict:
        """The same as `_take` without a wait for the device, which checks the weights as it takes them in.

        A track that mixes them with others needs to know before; for the others each block is checked after its copy.
        """
        weights = self._weights
        good, sums = None, []
        if any(track.mixes for track in due):
            good = self._agreed(weights.square_sums())
        self._begun = True
        for track in due:
            track.begin()
        for block, parts in weights.read():
            for track in due:
                track.take(block, parts, good)
            if good is None:
                sums += squares(parts)
        return Verdict(self._agreed(sums) if good is None else good)

    def _complete(self, due: list[Track], step: int) -> None:
        """After an interruption take in what is missing: an average is that of before a snapshot, or of after it."""
        if not self._begun or (self.check_finite and not self._weights.are_finite()):
            return
        for track in due:
            track.begin()
        for block, parts in self._weights.read():
            for track in due:
                track.resume(block, parts)
        for track in due:
            track.taken(step)

    def _agreed(self, sums: list[Tensor]) -> Tensor:
        """Whether the square sums of all ranks are finite; this one may hold no element of any tensor."""
        here = finite_later(sums) if sums else torch.ones((), dtype=torch.bool, device=self._weights.device)
        return self._ranks.all_agree_later(here)

    def _take(self, due: list[Track]) -> bool:
        """One pass over the weights for all tracks. False, with nothing changed, if they are to be finite and are not.

        An average cannot give back what it has taken in, so all blocks are checked before the first is used.
        """
        weights, check, fresh = self._weights, self._check_finite, list(due)
        at_once = len(weights.blocks) == 1 and self._ranks.alone
        if check and not at_once and not self._ranks.all_agree(weights.are_finite(), weights.device):
            return False
        for block, parts in weights.read():
            if check and at_once and not all_finite(parts):
                return False
            self._begun = True
            while fresh:
                fresh.pop().begin()
            for track in due:
                track.take(block, parts)
        for track in fresh:  # of a rank that holds no element of any tensor
            track.begin()
        return True

    def _look(self) -> None:
        """Follow the model if it has changed."""
        if self._weights.has_changed():
            self._notice(self._weights.look)

    def _notice(self, look: Callable[[], Change | None]) -> None:
        kind = self._weights.device, self._weights.dtype
        change = look()
        if (self._weights.device, self._weights.dtype) != kind:
            self._move(change)
        elif change is not None:
            self._follow(change)

    def _follow(self, change: Change) -> None:
        live = self._weights.sources(required=False)
        if change.words and any(track.steps for track in self._tracks):
            logger.warning(
                "the model has changed after update %d (%s): in the snapshots held, what is new counts as it is now",
                self.step,
                change.words,
            )
        for track in self._tracks:
            track.follow(change, live)
        self._spare.reserve()
        self._spare.release()

    def _move(self, change: Change | None) -> None:
        """The model is on another device, or its vector of another type: so are new tracks."""
        held = [(track.vectors(), track.steps, track.count, track.further()) for track in self._tracks]
        self._make_tracks()
        live, device = self._weights.sources(required=False), self._weights.device
        for track, (vectors, steps, count, further) in zip(self._tracks, held, strict=True):
            if change is not None:
                empty = torch.empty(self._weights.numel, dtype=self._weights.dtype, device=device)
                vectors = [change.vector(vector.to(device), live, empty.clone()) for vector in vectors]
            track.set_vectors(vectors, steps, count)
            track.set_further(further)

    def _say(self, level: int, text: str, once: str) -> None:
        """Log what need not be said twice."""
        if once not in self._said:
            self._said.add(once)
            logger.log(level, text)
