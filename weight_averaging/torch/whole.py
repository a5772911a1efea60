"""The average of a model whose weights are spread over ranks, whole: tensor by tensor, on the first rank."""

import copy
import importlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from weight_averaging.atomic_file import partial_beside
from weight_averaging.tensor_names import without_wrappers
from weight_averaging.torch.model.blocks import Block
from weight_averaging.torch.model.ranks import Ranks
from weight_averaging.torch.model.tensors import spread_like, whole
from weight_averaging.torch.model.weights import LiveWeights

INDEX = "model.safetensors.index.json"


class WholeAverage:
    """The average, one tensor of the model after the other. All ranks of a sharded model make it and walk over it.

    Args:
        state: the model's own state dict.
        values_of: the average over a block, flat.
    Attributes:
        names: of the whole state dict, in its order.
        sizes: name and bytes of each tensor that is averaged, and of every other one, in the order of the walk.
        kinds: their shapes and types.
        tied: names of the model that stand for the tensor of another name, by their own.
        others: what the state dict has beside tensors, by name.
    """

    def __init__(
        self, state: dict[str, Any], weights: LiveWeights, ranks: Ranks, values_of: Callable[[Block], Tensor]
    ) -> None:
        self._weights, self._ranks, self._values_of = weights, ranks, values_of
        self.names = [without_wrappers(key) for key in state]
        places = weights.index_by_id()
        first: dict[int, str] = {}  # name of each tensor object
        self.tied: dict[str, str] = {}
        self.others: dict[str, Any] = {}
        self._names: dict[int, str] = {}  # by place
        self._rest: dict[str, Tensor] = {}
        for key, value in state.items():
            name = without_wrappers(key)
            if not isinstance(value, Tensor):
                self.others[name] = value
            elif first.setdefault(id(value), name) != name:
                self.tied[name] = first[id(value)]
            elif id(value) in places:
                self._names[places[id(value)]] = name
            else:
                self._rest[name] = value
        live = dict(enumerate(weights.global_tensors()))
        averaged = [(name, live[place]) for place, name in sorted(self._names.items())]
        walk = [*averaged, *self._rest.items()]
        self.sizes = [(name, tensor.numel() * tensor.element_size()) for name, tensor in walk]
        self.kinds = [(tuple(tensor.shape), tensor.dtype) for _, tensor in walk]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Names, and tensors in main memory; on other ranks than the first without their elements."""
        if not self._ranks.is_owner:  # of replicas, nothing of which has to be gathered
            return
        for place, average in enumerate(self._each()):
            if place in self._names:
                yield self._names[place], self._here(average)
        for name, value in self._rest.items():
            yield name, self._here(value.detach(), copy=True)

    def _here(self, tensor: Tensor, copy: bool = False) -> Tensor:
        gathered = whole(tensor)
        return gathered.to("cpu", copy=copy) if self._ranks.is_first_of_part else torch.empty(0)

    def _each(self) -> Iterator[Tensor]:
        """The averages of the model's tensors, spread as these are; not more at once than a block has."""
        weights = self._weights
        likes, whole_ones = weights.tensors(), weights.global_tensors()
        begun: dict[int, Tensor] = {}
        next_ = 0

        def done(index: int) -> Tensor:
            tensor = begun.pop(index) if index in begun else torch.empty_like(likes[index])
            tensor = torch.view_as_complex(tensor) if weights.dtypes[index].is_complex else tensor
            return spread_like(tensor, whole_ones[index])

        for block in weights.blocks:
            pieces = self._values_of(block).split(block.sizes)
            for part, piece in zip(block.parts, pieces, strict=True):
                if part.start == 0:
                    begun[part.index] = torch.empty_like(likes[part.index], memory_format=torch.preserve_format)
                tensor = begun[part.index]
                if tensor.is_contiguous():
                    tensor.view(-1)[part.start : part.stop].copy_(piece)
                else:  # never cut
                    tensor.copy_(piece.view(tensor.shape))
                if part.stop == tensor.numel():
                    while next_ <= part.index:  # also those of which this rank has no element, for the others' sake
                        yield done(next_)
                        next_ += 1
        while next_ < len(likes):
            yield done(next_)
            next_ += 1


class Walk(Protocol):
    """What a `WholeAverage` is to those who write it."""

    names: list[str]
    sizes: list[tuple[str, int]]
    tied: dict[str, str]
    others: dict[str, Any]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]: ...


def whole_state_dict(average: Walk, is_first: bool) -> dict[str, Any]:
    """See `Averager.average_state_dict`."""
    found: dict[str, Any] = {name: tensor for name, tensor in average if is_first}
    if not is_first:
        return {}
    found |= {name: found[first] for name, first in average.tied.items()}
    found |= {name: copy.deepcopy(value) for name, value in average.others.items()}
    return {name: found[name] for name in average.names}


def save(average: Walk, folder: Path, max_shard_size: int, ranks: Ranks, device: torch.device) -> None:
    """See `Averager.save_average`. An error of the first rank is told on all, after all have taken part."""
    if importlib.util.find_spec("safetensors") is None:
        raise ModuleNotFoundError("save_average() writes safetensors files: pip install safetensors")
    if max_shard_size <= 0:
        raise ValueError(f"max_shard_size is bytes of a part, and must be positive, not {max_shard_size}")
    if average.others:
        raise TypeError(f"save_average(): {next(iter(average.others))} of the state dict is no tensor")
    parts = _parts(average.sizes, max_shard_size)
    writer = _Writer(average, folder, parts) if ranks.is_first else None
    try:
        for name, tensor in average:
            if writer is not None:
                writer.take(name, tensor)
        if writer is not None:
            writer.finish()
    finally:
        if writer is not None:
            shutil.rmtree(writer.partial, ignore_errors=True)
    error = None if writer is None else writer.error
    good = ranks.all_agree(error is None, device)
    if error is not None:
        raise error
    if not good:
        raise RuntimeError(f"save_average(): the first rank could not write {folder}; its error says why")


class _Writer:
    """Writes parts beside their place, and puts them there in the end. Keeps an error, so as not to leave a walk."""

    def __init__(self, average: Walk, folder: Path, parts: list[list[str]]) -> None:
        self._average, self._folder, self._parts = average, folder, parts
        self._held: dict[str, Tensor] = {}
        self._number = 0
        self.error: Exception | None = None
        self.partial = partial_beside(folder)
        self._try(self._begin)

    def _try(self, step: Callable[[], object]) -> None:
        if self.error is None:
            try:
                step()
            except Exception as error:  # whatever it is: the other ranks are in the walk, and would wait for this one
                self.error = error

    def _begin(self) -> None:
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        self.partial.mkdir()

    def take(self, name: str, tensor: Tensor) -> None:
        """The next tensor of the walk."""
        self._held[name] = tensor.contiguous()
        if len(self._held) == len(self._parts[self._number]):
            self._try(self._write)
            self._held, self._number = {}, self._number + 1

    def _write(self) -> None:
        save_file = importlib.import_module("safetensors.torch").save_file  # not there where submissions run
        tied = {name: first for name, first in self._average.tied.items() if first in self._held}
        path = self.partial / _file(self._number, len(self._parts))
        save_file(self._held, path, metadata={"format": "pt", **tied})

    def finish(self) -> None:
        """All have been taken."""
        self._try(self._put)

    def _put(self) -> None:
        if len(self._parts) > 1:
            files = {
                name: _file(number, len(self._parts)) for number, names in enumerate(self._parts) for name in names
            }
            size = sum(size for _, size in self._average.sizes)
            index = {"metadata": {"total_size": size}, "weight_map": files}
            (self.partial / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        try:
            os.replace(self.partial, self._folder)  # over an empty folder too
        except OSError as error:
            message = "there, and not an empty folder, so that it is not written over"
            raise FileExistsError(error.errno, message, str(self._folder)) from None


def _parts(sizes: list[tuple[str, int]], most: int) -> list[list[str]]:
    """Names in files of at most so many bytes, but for a tensor that has more by itself."""
    parts: list[list[str]] = [[]]
    used = 0
    for name, size in sizes:
        if parts[-1] and used + size > most:
            parts.append([])
            used = 0
        parts[-1].append(name)
        used += size
    return parts


def _file(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"
