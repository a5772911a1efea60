"""What LAWA and EMA share: collecting snapshots, swapping the average in and out of the model, saving and loading."""

import abc
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weight_averaging.collection import check_count, is_due
from weight_averaging.torch.batch_norm import batch_norms
from weight_averaging.torch.ranks import Ranks
from weight_averaging.torch.state import fits, restore_track, track_state
from weight_averaging.torch.tracks import Track
from weight_averaging.torch.weights import Block, LiveWeights, finite, squares

logger = logging.getLogger("weight_averaging")

BUFFERS = ("average", "latest", "recompute")


class Averager(abc.ABC):
    """An average of a model's weights along training, kept in float32 and apart from the model.

    The model trains on its raw weights. `swap_in` puts the average into it for evaluation and keeps the raw weights
    aside; `swap_out` puts those back, bit for bit. Use `averaged()` for both.

    Of parameters that are spread over ranks (DTensor, as under FSDP2) every rank averages its own shards, with nothing
    gathered; `update` is then collective where `check_finite` is on.

    Args:
        model: the module in training, also when wrapped by DDP, FSDP2 or torch.compile.
        interval: updates between snapshots, nu >= 1.
        start: the first update whose weights may be collected.
        buffers: `"average"` treats floating-point buffers (batch-norm statistics) like parameters, `"latest"` leaves
            them as training has them, `"recompute"` asks for new batch-norm statistics at every swap, by the function
            given to `swap_in`. Integer buffers always stay as they are.
        check_finite: refuse weights with a NaN or an infinity, for one more read of the weights at each snapshot. Turn
            it off where that read matters (an interval of 1) and training stops at the first NaN anyway.
        process_group: replicas (DDP) that average together: they agree on which snapshots are collected, one of them
            holds what one is enough for, and `update` and `swap_in` are collective. None: each is on its own.
    """

    def __init__(
        self, model: nn.Module, *, start: int, buffers: str, check_finite: bool, process_group: Any = None
    ) -> None:
        if buffers not in BUFFERS:
            raise ValueError(f"buffers must be one of {', '.join(BUFFERS)}, not {buffers!r}")
        self.start = check_count("start", start)
        self.buffers = buffers
        self.check_finite = check_finite
        self.step = 0  # the last update seen
        self._weights = LiveWeights(model, buffers == "average")
        self._ranks = Ranks(process_group, self._weights.global_tensors())
        self._model = model
        self._raw: list[Tensor] = []  # the raw weights, while the average is in the model
        self._raw_statistics: list[Tensor] = []  # of batch norm, while recomputed ones are in the model
        self._swapped = False
        self._said_not_ready = False
        self._refusing = False  # whether the last snapshot that was due was not finite

    @property
    @abc.abstractmethod
    def ready(self) -> bool:
        """Whether there is an average to swap in."""

    @abc.abstractmethod
    def _tracks(self) -> Sequence[Track]:
        """Everything that takes in snapshots."""

    @property
    @abc.abstractmethod
    def _shown(self) -> Track:
        """Where the average that a swap shows comes from."""

    @abc.abstractmethod
    def _average(self, block: Block) -> Tensor:
        """The average over a block, flat and float32, on any device."""

    @abc.abstractmethod
    def _hyperparameters(self) -> dict[str, Any]:
        """What must agree between a saved state and this averager."""

    @property
    def snapshot_steps(self) -> list[int]:
        """The updates whose snapshots are held (a window), or the last one taken in (an EMA); oldest first."""
        return list(self._shown.steps)

    @property
    def swapped(self) -> bool:
        """Whether the model holds the average now."""
        return self._swapped

    @torch.no_grad()
    def update(self, step: int) -> bool:
        """Tell that `step` optimizer updates are complete; collects a snapshot when one is due.

        Weights with a NaN or an infinity are not collected (`check_finite`): a warning names the first such step and
        the average stays as it is.

        Returns:
            Whether a snapshot was collected.
        Raises:
            RuntimeError: the average is swapped in, so the model's weights are not those of training.
            ValueError: `step` is not larger than at the last call.
        """
        if self._swapped:
            raise RuntimeError(f"update({step}) while the average is in the model: call swap_out() before training on")
        if step <= self.step:
            last = f"update({step}) after update({self.step})"
            raise ValueError(f"{last}: pass the number of completed updates, 1, 2, ...")
        self.step = step
        due = [track for track in self._tracks() if is_due(step, track.interval, track.start)]
        if not due:
            return False
        collected = self._collect(due)
        if collected:
            for track in due:
                track.taken(step)
        elif not self._refusing:  # once, not at every snapshot of a run that is lost
            held = due[0].steps
            stays = f"the average stays that of step {held[-1]}" if held else "there is no average yet"
            logger.warning("step %d: weights are not finite and are not collected; %s", step, stays)
        self._refusing = not collected
        return collected

    def _collect(self, due: list[Track]) -> bool:
        """One pass over the weights for all tracks. False, with nothing changed, if they are to be finite and are not.

        An average cannot give back what it has taken in, so all blocks are checked before the first is used.
        """
        weights = self._weights
        at_once = len(weights.plan) == 1 and self._ranks.alone
        if self.check_finite and not at_once and not self._ranks.all_agree(weights.are_finite(), weights.device):
            return False
        for block, parts in weights.blocks():
            if self.check_finite and at_once and not finite(squares(parts)):
                return False
            for track in due:
                track.take(block, parts)
        return True

    @torch.no_grad()
    def swap_in(self, recompute: Callable[[], object] | None = None) -> bool:
        """Put the average into the model. Does nothing if it is there already, or if none is ready.

        Args:
            recompute: called with the average in the model, to bring batch-norm statistics up to date, for instance by
                `weight_averaging.torch.recompute_batch_norm`. Needed under `buffers="recompute"`, unused otherwise.
                Random numbers that it draws are not missed by training.
        Returns:
            Whether the model holds the average now.
        Raises:
            TypeError: `buffers="recompute"` without `recompute`.
        """
        if self.buffers == "recompute" and recompute is None:
            raise TypeError('buffers="recompute" needs a function to do it: swap_in(recompute=...)')
        if self._swapped:
            return True
        for track in self._tracks():
            track.vectors()  # copies under way are complete on return, whether or not they are needed now
        if not self.ready:
            if not self._said_not_ready:
                logger.info("%s is not ready at step %d: the raw weights are evaluated", type(self).__name__, self.step)
                self._said_not_ready = True
            return False
        self._raw = self._weights.keep_raw()
        self._swapped = True
        self._write()
        if self.buffers == "recompute":
            assert recompute is not None
            self._raw_statistics = [buffer.clone() for buffer in self._statistics()]
            with torch.random.fork_rng():
                recompute()
        return True

    @torch.no_grad()
    def swap_out(self) -> bool:
        """Put the raw weights back into the model. Does nothing if they are there.

        Returns:
            Whether anything was swapped.
        """
        if not self._swapped:
            return False
        self._weights.restore(self._raw)
        self._restore_statistics(self._raw_statistics)
        self._swapped = False
        return True

    def _write(self) -> None:
        """Overwrite the model with the average; of replicas the one that holds it does so, and hands it on."""
        by_owner = self._shown.by_owner
        if self._ranks.is_owner or not by_owner:
            with self._ranks.idle_cores(by_owner):
                self._weights.write(self._average)
        if by_owner:
            self._ranks.spread(self._weights.tensors())

    def _statistics(self) -> list[Tensor]:
        return [buffer for layer in batch_norms(self._model) for buffer in layer.buffers(recurse=False)]

    def _restore_statistics(self, raw: list[Tensor]) -> None:
        for buffer, value in zip(self._statistics() if raw else [], raw, strict=True):
            buffer.copy_(value)
        self._raw_statistics = []

    @contextlib.contextmanager
    def averaged(self, recompute: Callable[[], object] | None = None) -> Iterator[bool]:
        """The average in the model for the length of a `with` block, which receives whether there was one to use."""
        was_swapped = self._swapped
        try:
            yield self.swap_in(recompute)
        finally:
            if not was_swapped:
                self.swap_out()

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings: loads under `torch.load(weights_only=True)`.

        The tensors are not copied; save them before training goes on. Taken while swapped, the state also holds the
        raw weights, since a model saved at that moment does not.

        Of a model with DTensors the state holds DTensors, and is of one size whether or not a window is full, so that
        torch.distributed.checkpoint saves it from any number of ranks and loads it into the state of another.

        Raises:
            RuntimeError: the average is swapped in, and the model has DTensors.
        """
        if self._swapped and self._weights.is_sharded:
            raise RuntimeError("the state of a model with DTensors cannot be saved while swapped: call swap_out()")
        return {
            "averager": type(self).__name__,
            **self._hyperparameters(),
            "start": self.start,
            "buffers": self.buffers,
            "step": self.step,
            "names": list(self._weights.names),
            "shapes": [list(shape) for shape in self._weights.shapes],
            "tracks": [track_state(self._weights, track) for track in self._tracks()],
            "raw": list(self._raw) if self._swapped else None,
            "raw_statistics": list(self._raw_statistics),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state, wherever `map_location` put its tensors.

        If it was saved while swapped, the raw weights go back into the model, which is then ready for training.

        Raises:
            ValueError: it is the state of another averager, other settings or another model. Nothing is changed.
        """
        settings = {**self._hyperparameters(), "start": self.start, "buffers": self.buffers}
        name = type(self).__name__
        missing = [key for key in (*settings, *_CONTENTS) if key not in state]
        if missing:
            raise ValueError(f"not the state of an averager: it has no {', '.join(missing)}")
        for key, mine in {"averager": name, **settings}.items():
            if state[key] != mine:
                raise ValueError(f"the saved {state['averager']} has {key}={state[key]!r}, this {name} {mine!r}")
        order = fits(self._weights, state["names"], [tuple(shape) for shape in state["shapes"]])
        tracks = self._tracks()
        restored = [
            restore_track(self._weights, saved, state, order, track, self._ranks.is_owner)
            for saved, track in zip(state["tracks"], tracks, strict=True)
        ]
        for (vectors, steps), track in zip(restored, tracks, strict=True):
            track.set_vectors(vectors, steps)
        self.step = state["step"]
        if state["raw"] is not None:
            self._weights.restore([state["raw"][index] for index in order])
        self._restore_statistics(state["raw_statistics"])
        self._swapped = False


_CONTENTS = ("averager", "step", "names", "shapes", "tracks", "raw", "raw_statistics")
