"""The average in the model: what is true meanwhile, and the way back."""

import contextlib
import logging
import sys
import weakref
from collections.abc import Callable, Container, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from weight_averaging.torch.load_guard import LoadGuard
from weight_averaging.torch.memory.pickling import packed, unpacked
from weight_averaging.torch.model.batch_norm import keep_statistics, restore_statistics
from weight_averaging.torch.model.probe import Probe, replaced
from weight_averaging.torch.model.spare_copy import SpareCopy

logger = logging.getLogger("weight_averaging")

_IN_MODELS: "weakref.WeakSet[Swap]" = weakref.WeakSet()  # those whose average is in their model now


class Swap:
    """The raw weights' place while the average is in the model.

    Args:
        owner: who averages, for messages.
        spare: the spare copy of the model's weights.

    Attributes:
        is_in: whether the average is in the model.
        raw: the raw weights meanwhile.
        statistics: raw batch-norm statistics, while recomputed ones are in the model.
        guard: watches over checkpoints that are loaded after a state that was saved meanwhile.
    """

    def __init__(self, owner: str, model: nn.Module, spare: SpareCopy) -> None:
        self._owner, self._model, self._spare = owner, model, spare
        self.is_in = False
        self.raw: list[Tensor] = []
        self.statistics: dict[str, Tensor] = {}
        self.guard = LoadGuard()
        self._blocks = 0  # `averaged()` blocks that are open
        self._by_block = False  # whether one of them brought the average in
        self._shown: Probe | None = None  # of the parameters when it had come in

    @contextlib.contextmanager
    def block(self, bring_in: Callable[[], bool], take_out: Callable[[], bool]) -> Iterator[bool]:
        """The average in the model until the last of the blocks that overlap ends; as before if it was there already.

        Args:
            bring_in, take_out: of the averager; a change of the model inside is an error unless another one ends it.
        """
        was_in = self.is_in
        ready = bring_in()
        self._by_block = self._by_block or (ready and not was_in)
        self._blocks += 1
        failed = True
        try:
            yield ready
            failed = False
        finally:
            self._blocks -= 1
            if self._blocks == 0 and self._by_block and not sys.is_finalizing():  # when there is no torch any more
                self._shown = None if failed else self._shown
                take_out()

    def bring_in(self, write: Callable[[list[Tensor]], object], recompute: Callable[[], object] | None) -> None:
        """Keep the raw weights and overwrite them. An error on the way takes the average out again.

        Args:
            write: overwrites tensors like the model's with the average.
            recompute: brings batch-norm statistics up to date, if that is wanted.
        """
        if merged := self._spare.weights.merged():
            raise RuntimeError(
                f"{merged} has merged its low-rank weights, and the average is of unmerged ones: swap in while it is "
                "in training mode (loralib), or after unmerge_adapter() (PEFT)"
            )
        self.guard.end()
        try:
            with self._spare.weights.change():
                self.raw = self._spare.keep()
                self.is_in = True
                _IN_MODELS.add(self)
                write(self._spare.weights.tensors())
            if recompute is not None:
                self.statistics = keep_statistics(self._model)
                with torch.random.fork_rng():
                    recompute()
            self._shown = Probe(self._spare.weights)
        except BaseException:
            if self.is_in:
                self.take_out()
            raise

    def take_out(self) -> None:
        """Put the raw weights back, bit for bit; rounded, with a warning, where the model has a smaller type by now.

        Raises:
            RuntimeError: tensors of the model were removed or reshaped meanwhile. Where something wrote into the
                parameters, or a layer was replaced, it is raised too, but the raw weights are back all the same.
        """
        written = "" if self._shown is None else self._shown.changed(self._spare.weights)
        gone = "" if self._shown is None else replaced(self._model, self._spare.weights)
        with self._spare.weights.change():
            self._spare.restore(self.raw)
        if rounded := self._spare.rounded(self.raw):
            logger.warning("while the average was in the model, %s: the raw weights are back, rounded to that", rounded)
        restore_statistics(self._model, self.statistics)
        self.stay()
        if gone:
            raise RuntimeError(
                f"the layer of {gone} was replaced or removed while the average was in the model: its raw weights are "
                "back in the old layer, and what was made from it has the average; do that before swap_in() or after "
                "swap_out()"
            )
        if written:
            raise RuntimeError(
                f"{written} was changed while the average was in the model, and is what it was before again: a layer "
                "that merges weights in eval(), or an optimizer that swaps them there, has to be back in training mode "
                "before swap_out(), or in evaluation mode before swap_in(); a pass that clips weights has to do so "
                "after optimizer.step() instead"
            )

    def stay(self) -> None:
        """Forget the raw weights: what is in the model is there to stay."""
        self._shown = None
        self.raw, self.statistics = [], {}
        self._spare.release()
        self.is_in = self._by_block = False
        _IN_MODELS.discard(self)

    def train_on(self, step: int) -> None:
        """Update `step` has come: nothing is to be loaded any more, and the model must have weights of training."""
        if _IN_MODELS:
            self.refuse_another("update", step)
        if self.guard.at_end:
            self.guard.end()

    def refuse_another(self, what: str, step: object = "") -> None:
        """A RuntimeError if the average of another averager is in this model; `what` and `step` say what would be."""
        if not _IN_MODELS:
            return
        if other := _swapped(self._spare.weights.index_by_id(), but=self):
            raise RuntimeError(
                f"{what}({step}) while the average of another averager, {other._owner}, is in the model: "
                "call its swap_out() first"
            )

    def __getstate__(self) -> dict[str, Any]:
        """A copy has no open block: an average that is in it stays until its own swap_out."""
        without = {"guard": LoadGuard(), "_blocks": 0, "_by_block": False, "_shown": None}
        return {**self.__dict__, "raw": packed(self.raw), **without}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self.__dict__.update(saved, raw=unpacked(saved["raw"]))
        if self.is_in:
            _IN_MODELS.add(self)


def refuse_average_in(model: nn.Module, what: str) -> None:
    """A RuntimeError if the average of any averager is in a model whose weights are to be those of training."""
    if _IN_MODELS and (swap := _swapped({id(tensor) for tensor in [*model.parameters(), *model.buffers()]})):
        raise RuntimeError(f"{what} while the average of {swap._owner} is in the model: call its swap_out() first")


def _swapped(ids: Container[int], but: Swap | None = None) -> Swap | None:
    """A swap that has its average in tensors of these ids."""
    for swap in list(_IN_MODELS):
        if swap is not but and swap.is_in and any(place in ids for place in swap._spare.weights.index_by_id()):
            return swap
    return None
