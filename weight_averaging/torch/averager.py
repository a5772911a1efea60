"""Averages of a model in training: swapped in and out, handed out, saved and loaded."""

import abc
import contextlib
import logging
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from weight_averaging.averages.checks import check_step
from weight_averaging.torch import export, saved_state
from weight_averaging.torch.collector import Collector
from weight_averaging.torch.load_guard import LoadGuard
from weight_averaging.torch.memory.pickling import packed, unpacked
from weight_averaging.torch.model.batch_norm import keep_statistics, restore_statistics
from weight_averaging.torch.model.blocks import Block
from weight_averaging.torch.model.tensors import plain_tensors
from weight_averaging.torch.tracks.track import Track

_SWAPPED: "weakref.WeakSet[Averager]" = weakref.WeakSet()  # those whose average is in their model now


class Averager(Collector):
    """An average of a model's weights along training, kept in float32 and apart from the model.

    The model trains on its raw weights. `swap_in` puts the average into it for evaluation and keeps the raw weights
    aside; `swap_out` puts those back, bit for bit. Use `averaged()` for both.

    Averaged are the trainable parameters and batch-norm statistics (`torch.model.selection`). A model that
    changes is followed (`torch.model.changes`): what is new counts in the snapshots held with the value that
    it has when it is first seen, and a warning names it. docs/models.md tells what happens to which kinds of models.

    Of parameters that are spread over ranks (FSDP) every rank averages its own shards, with nothing gathered; `update`
    is then collective where `check_finite` is on.

    Args:
        model: the module in training, also when wrapped by DDP, FSDP or torch.compile.
        interval: updates between snapshots, nu >= 1.
        start: the first update whose weights may be collected.
        buffers: `"average"` treats batch-norm statistics like parameters, `"latest"` leaves them as training has them,
            `"recompute"` asks for new ones at every swap, by the function given to `swap_in`. Other buffers stay as
            they are.
        include, exclude: names or patterns of tensors or modules, or a function of name and tensor: frozen parameters
            and other floating-point buffers to average as well; parameters and statistics to leave as training has
            them. Names are those without wrappers.
        check_finite: refuse weights with a NaN or an infinity, for one more read of the weights at each snapshot. Turn
            it off where that read matters (an interval of 1) and training stops at the first NaN anyway. An accelerator
            is not waited for: what it finds is read before the next snapshot or any use of the average, and a bad one
            is dropped then.
        process_group: replicas (DDP) that average together: they agree on which snapshots are collected, one of them
            holds what one is enough for, and `update` and `swap_in` are collective. None: each is on its own.
    Raises:
        TypeError, ValueError: a model or an argument that cannot be taken, in one line.
    """

    def __init__(self, model: nn.Module, **settings: Any) -> None:
        super().__init__(model, **settings)
        self._raw: list[Tensor] = []  # the raw weights, while the average is in the model
        self._raw_statistics: dict[str, Tensor] = {}  # of batch norm, while recomputed ones are in the model
        self._swapped = False
        self._guard = LoadGuard()

    @property
    @abc.abstractmethod
    def _needed(self) -> int:
        """Snapshots that must be held for an average."""

    @property
    def ready(self) -> bool:
        """Whether there is an average to swap in."""
        self._settle()
        return len(self._shown.steps) >= self._needed

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

    def __repr__(self) -> str:
        given = {**self._hyperparameters(), "start": self.start}
        settings = ", ".join(f"{name}={value!r}" for name, value in given.items() if value not in (None, False))
        held = self.snapshot_steps
        last = f", the last of update {held[-1]}" if held else ""
        state = "in the model" if self._swapped else "ready" if self.ready else "not ready"
        return f"{type(self).__name__}({settings}; holds {len(held)}{last}; {state})"

    @property
    def snapshot_steps(self) -> list[int]:
        """The updates whose snapshots are held (a window), or the last one taken in (an EMA); oldest first."""
        self._settle()
        return list(self._shown.steps)

    @property
    def swapped(self) -> bool:
        """Whether the model holds the average now."""
        return self._swapped

    def update(self, step: int) -> bool:
        """Tell that `step` optimizer updates are complete; collects a snapshot when one is due.

        Weights with a NaN or an infinity are not collected (`check_finite`): a warning names the first such step and
        the average stays as it is.

        Returns:
            Whether a snapshot was collected; on an accelerator, where one was due, before it is known to be finite.
        Raises:
            RuntimeError: the average, or that of another averager, is in the model, so that its weights are not those
                of training.
            TypeError, ValueError: `step` is not a whole number, or not larger than at the last call.
        """
        if self._swapped:
            raise RuntimeError(f"update({step}) while the average is in the model: call swap_out() before training on")
        step = check_step(step, self.step)
        if _SWAPPED:
            self._refuse_another(f"update({step})")
        self._guard.end()
        return self._pass(step)

    def _refuse_another(self, what: str) -> None:
        """A RuntimeError if the average of another averager is in this model."""
        mine: set[int] | None = None
        for other in list(_SWAPPED):
            if other is not self and other._swapped:
                mine = mine or set(self._weights.index_by_id())
                if not mine.isdisjoint(other._weights.index_by_id()):
                    raise RuntimeError(
                        f"{what} while the average of another averager, {type(other).__name__}, is in the model: "
                        "call its swap_out() first"
                    )

    @plain_tensors
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
            RuntimeError: the average of another averager is in the model.
        """
        if self.buffers == "recompute" and recompute is None:
            raise TypeError('buffers="recompute" needs a function to do it: swap_in(recompute=...)')
        if self._swapped:
            return True
        self._refuse_another("swap_in()")
        if not self._prepare():
            return False
        self._guard.end()
        self._raw = self._weights.keep_raw()
        self._swapped = True
        _SWAPPED.add(self)
        try:
            self._write(self._weights.tensors())
            if self.buffers == "recompute":
                assert recompute is not None
                self._raw_statistics = keep_statistics(self._model)
                with torch.random.fork_rng():
                    recompute()
        except BaseException:
            self.swap_out()
            raise
        return True

    def _prepare(self) -> bool:
        """What comes before any use of the average: copies under way are complete on return. Whether it is ready."""
        self._settle()
        if not self._swapped:
            self._look()
        for track in self._tracks():
            track.vectors()
        if self.ready:
            if names := self._frozen.changed(self._model, self._weights.selected):
                self._say(
                    logging.WARNING,
                    f"{len(names)} frozen parameters are not averaged, but they change ({names[0]}): average them by "
                    "include=, or say by exclude= that they are to stay as they are",
                    "frozen",
                )
            return True
        self._say(
            logging.WARNING,
            f"{type(self).__name__} is not ready at step {self.step}: the raw weights are evaluated. It will be ready "
            f"after update {self._ready_at()}, with {self._needed} snapshots {self._shown.interval} updates apart",
            "not ready",
        )
        return False

    def _ready_at(self) -> int:
        track = self._shown
        due = -(-max(self.step + 1, track.start) // track.interval) * track.interval  # the next one
        return due + (self._needed - len(track.steps) - 1) * track.interval

    def _write(self, tensors: list[Tensor]) -> None:
        """Overwrite tensors like the model's with the average; of replicas the one that holds it hands it on."""
        by_owner = self._shown.by_owner
        if self._ranks.is_owner or not by_owner:
            with self._ranks.idle_cores(by_owner):
                self._weights.write(self._average, tensors)
        if by_owner:
            self._ranks.spread(tensors)

    @plain_tensors
    def swap_out(self) -> bool:
        """Put the raw weights back into the model. Does nothing if they are there.

        Returns:
            Whether anything was swapped.
        Raises:
            RuntimeError: tensors of the model were removed or reshaped meanwhile.
        """
        if not self._swapped:
            return False
        self._weights.restore(self._raw)
        restore_statistics(self._model, self._raw_statistics)
        self._raw, self._raw_statistics = [], {}
        self._weights.release_raw()
        self._swapped = False
        _SWAPPED.discard(self)
        return True

    @contextlib.contextmanager
    def averaged(self, recompute: Callable[[], object] | None = None) -> Iterator[bool]:
        """The average in the model for the length of a `with` block, which receives whether there was one to use.

        What is taken out of the model in the block and shares its memory (`model.state_dict()`) has the raw weights
        after it: save it inside, or use `average_state_dict()`.
        """
        was_swapped = self._swapped
        try:
            yield self.swap_in(recompute)
        finally:
            if not was_swapped:
                self.swap_out()

    def average_state_dict(self) -> dict[str, Any]:
        """The average as a state dict of the plain model, without touching the model: to deploy, export or publish.

        Names are those of the model without wrappers, types the model's own. What is not averaged (frozen parameters,
        other buffers) is there as the model has it. All tensors are new memory. Of replicas all must call it.

        Raises:
            RuntimeError: there is no average yet, or the model's state_dict does not have its tensors as they are, as
                under FSDP1: then save the model's own state_dict within `averaged()`.
            TypeError: `buffers="recompute"`, for which the same holds.
        """
        return export.average_state_dict(self)

    def copy_to(self, other: nn.Module) -> bool:
        """Write the average into another model of the same kind, to be evaluated while this one trains on.

        What is not averaged is copied from the model as it is. The other model may be on another device, of other
        types, and wrapped or not. Of replicas all must call it.

        Returns:
            Whether there is an average; if not, the other model gets the raw weights, and a warning says so once.
        Raises:
            ValueError: the other model lacks a tensor, or has one of another shape. Nothing is changed.
            TypeError: `buffers="recompute"`.
        """
        return export.copy_to(self, other)

    @plain_tensors
    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings: loads under `torch.load(weights_only=True)`.

        The tensors are not copied: save them, or take a `copy.deepcopy`, before training goes on. Taken while swapped,
        the state also holds the raw weights, since a model saved at that moment does not.

        Of a model with DTensors the state holds DTensors, and is of one size whether or not a window is full, so that
        torch.distributed.checkpoint saves it from any number of ranks and loads it into the state of another.

        Raises:
            RuntimeError: the average is swapped in, and the model has DTensors.
        """
        return saved_state.state_of(self)

    @plain_tensors
    def load_state_dict(self, saved: dict[str, Any], *, settings: str = "same") -> None:
        """Take over a saved state, wherever `map_location` put its tensors. An average in the model is taken out first.

        If the state was saved while swapped, the raw weights go back into the model, which is then ready for training.
        The model's own checkpoint may be loaded before or after: if it has the average of that moment, the raw weights
        are put back again.

        Args:
            settings: `"same"` refuses a state of other settings. `"new"` goes on from it with those of this averager:
                of a window the snapshots are kept that it would hold itself (consecutive multiples of its interval), an
                EMA goes on with its new decay; a log line says how many there are.
        Raises:
            ValueError: it is the state of another averager, other settings or another model, or it was not copied and
                training has gone on since. The state is not taken over.
        """
        saved_state.load(self, saved, settings)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy.deepcopy, together with the model: everything that training on needs, unshared."""
        if self._ranks.group is not None:
            raise TypeError("an averager with a process_group cannot be pickled or deep-copied: use its state_dict()")
        self._settle()
        return {**self.__dict__, "_raw": packed(self._raw), "_guard": LoadGuard()}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self.__dict__.update(saved, _raw=unpacked(saved["_raw"]))
        if self._swapped:
            _SWAPPED.add(self)
