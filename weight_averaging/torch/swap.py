"""The average in the model: what is true meanwhile, and the way back."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from weight_averaging.torch.load_guard import LoadGuard
from weight_averaging.torch.memory.pickling import packed, unpacked
from weight_averaging.torch.model.batch_norm import keep_statistics, restore_statistics
from weight_averaging.torch.model.spare_copy import SpareCopy

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

    def bring_in(self, write: Callable[[list[Tensor]], object], recompute: Callable[[], object] | None) -> None:
        """Keep the raw weights and overwrite them. An error on the way takes the average out again.

        Args:
            write: overwrites tensors like the model's with the average.
            recompute: brings batch-norm statistics up to date, if that is wanted.
        """
        self.guard.end()
        self.raw = self._spare.keep()
        self.is_in = True
        _IN_MODELS.add(self)
        try:
            write(self._spare.weights.tensors())
            if recompute is not None:
                self.statistics = keep_statistics(self._model)
                with torch.random.fork_rng():
                    recompute()
        except BaseException:
            self.take_out()
            raise

    def take_out(self) -> None:
        """Put the raw weights back, bit for bit.

        Raises:
            RuntimeError: tensors of the model were removed or reshaped meanwhile.
        """
        self._spare.restore(self.raw)
        restore_statistics(self._model, self.statistics)
        self.raw, self.statistics = [], {}
        self._spare.release()
        self.is_in = False
        _IN_MODELS.discard(self)

    def refuse_another(self, what: str) -> None:
        """A RuntimeError if the average of another averager is in this model."""
        if not _IN_MODELS:
            return
        mine: set[int] | None = None
        for other in list(_IN_MODELS):
            if other is not self and other.is_in:
                mine = mine or set(self._spare.weights.index_by_id())
                if not mine.isdisjoint(other._spare.weights.index_by_id()):
                    raise RuntimeError(
                        f"{what} while the average of another averager, {other._owner}, is in the model: "
                        "call its swap_out() first"
                    )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "raw": packed(self.raw), "guard": LoadGuard()}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self.__dict__.update(saved, raw=unpacked(saved["raw"]))
        if self.is_in:
            _IN_MODELS.add(self)
