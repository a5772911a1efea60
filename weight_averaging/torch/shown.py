"""What is made of the average: written into a model, handed out as a state dict."""

import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from weight_averaging.averages import Average
from weight_averaging.torch import export
from weight_averaging.torch.collector import Collector
from weight_averaging.torch.model.elsewhere import elsewhere
from weight_averaging.torch.model.ranks import gathered, together
from weight_averaging.torch.model.tensors import locked
from weight_averaging.torch.model.wrappers import as_module
from weight_averaging.torch.options import Model, Options
from weight_averaging.torch.parts import WholeOfParts
from weight_averaging.torch.swap import Swap
from weight_averaging.torch.whole import WholeAverage, save, whole_state_dict
from weight_averaging.words import counted


class Shown(Collector):
    """A collector whose average is shown, in the model or apart from it. Arguments and errors: as `Averager`."""

    def __init__(self, model: Model, averages: Iterable[Average], options: Options) -> None:
        one = as_module(model)
        group = options["model_parallel_group"]
        others = elsewhere(one, group)
        make = partial(super().__init__, one, averages, options, others)
        together(group, make)
        if others is not None and not any(gathered(group, self._weights.has_elements)):
            raise ValueError("no rank of model_parallel_group has a trainable floating-point parameter to average")
        self._swap = Swap(self.name, one, self._spare)

    def _prepare(self) -> bool:
        """What comes before any use of the average: copies under way are complete on return. Whether it is ready."""
        self._settle()
        if not self._swap.is_in:
            self._look()
            self._weights.check_masters(before_swap=True)
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
    def average_state_dict(self, full: bool = False) -> dict[str, Any]:
        """The average as a state dict of the plain model, without touching the model: to deploy, export or publish.

        Names are those of the model without wrappers, types the model's own. What is not averaged (frozen parameters,
        other buffers) is there as the model has it. All tensors are new memory. Of replicas, and of shards where `full`
        is true, all ranks must call it.

        Args:
            full: whole tensors in main memory on the first rank, instead of each rank's shards, and nothing on the
                others. They are gathered one by one, so that no device holds more than one whole tensor. The main
                memory of the first rank holds the model once.
        Raises:
            RuntimeError: there is no average yet, or the model's state_dict does not have its tensors as they are, as
                under FSDP1. Then save the model's own state_dict within `averaged()`.
            TypeError: `buffers="recompute"`, for which the same holds.
        """
        export.check("average_state_dict()", self.buffers, self._ranks)
        if not self._prepare():
            raise RuntimeError(f"there is no average yet: {self!r}")
        if full:
            return whole_state_dict(self._whole(), self._ranks.is_first)
        return export.average_state_dict(self._model, self._weights, self._write)

    @locked
    def save_average(self, folder: str | Path, max_shard_size: int = 5 * 10**9) -> None:
        """Save the average as Hugging Face does: `model.safetensors`, or parts of it and their index.

        `from_pretrained(folder)` takes it once the config is there, `safetensors.torch.load_file` at once. The folder
        is in place when all of it is written. Names and types are those of `average_state_dict`; of tied tensors the
        first is there, and the metadata names the others (as of `safetensors.torch.save_model`). Of replicas and shards
        all ranks must call it. Tensors are gathered one by one: the first rank holds one part in main memory, no rank
        the whole model.

        Args:
            folder: a new one, or an empty one.
            max_shard_size: bytes of a part, except where one tensor has more.
        Raises:
            RuntimeError, TypeError: as `average_state_dict`; or the first rank could not write, on the others.
            OSError: on the first rank: so it is, or the folder is not empty.
            ModuleNotFoundError: safetensors is not installed.
        """
        export.check("save_average()", self.buffers, self._ranks)
        if not self._prepare():
            raise RuntimeError(f"there is no average yet: {self!r}")
        save(self._whole(), Path(folder), max_shard_size, self._ranks, self._weights.device)

    def _whole(self) -> WholeAverage | WholeOfParts:
        track = self._shown
        state = together(self._ranks.parts, lambda: export.state_of(self._model, self._weights))
        whole = WholeAverage(state, self._weights, self._ranks, lambda block: track.average(block, self._selected))
        return whole if self._ranks.parts is None else WholeOfParts(whole, self._ranks, self._weights.device)

    @locked
    def copy_to(self, other: Model) -> bool:
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
