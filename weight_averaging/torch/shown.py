"""What is made of the average: written into a model, handed out as a state dict."""

import logging
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from weight_averaging.averages import Average
from weight_averaging.torch import export
from weight_averaging.torch.collector import Collector
from weight_averaging.torch.model.tensors import locked
from weight_averaging.torch.options import Options
from weight_averaging.torch.swap import Swap
from weight_averaging.words import counted


class Shown(Collector):
    """A collector whose average is shown, in the model or apart from it. Arguments and errors: as `Averager`."""

    def __init__(self, model: nn.Module, averages: Iterable[Average], options: Options) -> None:
        super().__init__(model, averages, options)
        self._swap = Swap(self.name, model, self._spare)

    def _prepare(self) -> bool:
        """What comes before any use of the average: copies under way are complete on return. Whether it is ready."""
        self._settle()
        if not self._swap.is_in:
            self._look()
        for track in self._tracks:
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
            f"{self.name} is not ready at step {self.step}: the raw weights are evaluated. It will be ready "
            f"after update {self._ready_at()}, with {counted(self._selected.needed, 'snapshot')}"
            + (f" {counted(self._shown.interval, 'update')} apart" if self._selected.needed > 1 else ""),
            "not ready",
        )
        return False

    @locked
    def average_state_dict(self) -> dict[str, Any]:
        """The average as a state dict of the plain model, without touching the model: to deploy, export or publish.

        Names are those of the model without wrappers, types the model's own. What is not averaged (frozen parameters,
        other buffers) is there as the model has it. All tensors are new memory. Of replicas all must call it.

        Raises:
            RuntimeError: there is no average yet, or the model's state_dict does not have its tensors as they are, as
                under FSDP1. Then save the model's own state_dict within `averaged()`.
            TypeError: `buffers="recompute"`, for which the same holds.
        """
        export.check("average_state_dict()", self.buffers, self._ranks)
        if not self._prepare():
            raise RuntimeError(f"there is no average yet: {self!r}")
        return export.average_state_dict(self._model, self._weights, self._write)

    @locked
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
        export.check("copy_to()", self.buffers, self._ranks)
        ready = self._prepare()
        write = self._write if ready else None
        export.copy_to(other, self._model, self._weights, write, alike=self._ranks.group is None)
        return ready

    def _ready_at(self) -> int:
        track = self._shown
        due = -(-max(self.step + 1, track.start) // track.interval) * track.interval  # the next one
        return due + (self._selected.needed - len(track.steps) - 1) * track.interval

    def _write(self, tensors: list[Tensor]) -> None:
        """Overwrite tensors like the model's with the average; of replicas the one that holds it hands it on."""
        track = self._shown
        if self._ranks.is_owner or not track.by_owner:
            with self._ranks.idle_cores(track.by_owner):
                self._weights.write(lambda block: track.average(block, self._selected), tensors)
        pairs = zip(tensors, self._weights.entries, strict=True)
        # Of replicas the parameters are the same, and batch-norm statistics are each rank's own.
        self._ranks.spread(tensors if track.by_owner else [tensor for tensor, entry in pairs if entry.is_buffer])
