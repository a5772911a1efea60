"""A model's floating-point tensors, as they are now, as one flat vector, read and written in blocks."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from weight_averaging.include_exclude import Choice
from weight_averaging.torch.model.blocks import Block, blocks_of
from weight_averaging.torch.model.changes import Change, Known, change_of, reference_to
from weight_averaging.torch.model.elsewhere import Elsewhere
from weight_averaging.torch.model.finite import finite, squares
from weight_averaging.torch.model.look import FSDP2, Look, Signature, present, reshard_flat
from weight_averaging.torch.model.masters import Masters, Source
from weight_averaging.torch.model.modes import weights_change
from weight_averaging.torch.model.selection import Entry, Selection, named_modules
from weight_averaging.torch.model.tensors import local, real, writing


class LiveWeights:
    """The tensors of `model` that `Selection` chooses.

    They are looked up in their modules at every use; `look` notices what happens to the model. Of a parameter that is
    spread over ranks (DTensor, as under FSDP2) this rank's shard counts. Complex tensors are pairs of real ones, and
    have a last dimension of 2 here.

    Args:
        model: any module; the names are those without wrappers.
        buffers, include, exclude: see `Selection`.
        dtype: of the vector, torch.float32 or torch.float64; None: float64 if any of the tensors is so, else float32.
        masters: of parameters, which are read in their place; see `Masters`.
        elsewhere: of the other tensors of the model, where other ranks have them: there may be none here.
    Raises:
        ValueError, TypeError: there is nothing to average, or something that cannot be; see `Selection`.

    Attributes:
        names, shapes, dtypes: of the tensors; whole shapes where they are spread over ranks.
        numel: elements of the vector.
        blocks: what it is cut into.
        dtype, device: of the vector.
        has_elements: whether there is one, on this rank or on those that hold its shards.
        is_single: whether all tensors have them, and are what is read.
        masters_unread: whether there are masters, and none has been read yet.
        version: how often the model has been walked over.
    """

    def __init__(
        self,
        model: nn.Module,
        buffers: bool,
        include: Choice = None,
        exclude: Choice = None,
        dtype: torch.dtype | None = None,
        masters: Source | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._model, self._asked, self._elsewhere = model, dtype, elsewhere
        self._masters = None if masters is None else Masters(masters, elsewhere is not None)
        self.masters_unread = masters is not None
        self._selection = Selection(buffers, include, exclude, None if elsewhere is None else elsewhere.names)
        self._selection.check(model)
        self._adopted: set[str] = set()
        self.is_sharded = False
        self.version = 0
        self._staging: Tensor | None = None
        self._gathered: list[Tensor] | None = None  # views of the scratch space
        self._signature: Signature | None = None  # as of the last look; None: the model may be another object now
        self.entries: list[Entry] = []
        self._known: list[Known] = []
        self._scan()

    def look(self) -> Change | None:
        """Notice what has happened to the model since the last look; None if that is nothing.

        Raises: as for a new model; then nothing is taken over.
        """
        return self._scan() if self.has_changed() else None

    def has_changed(self) -> bool:
        """Whether anything has happened to the model since the last look."""
        self._reshard()
        return self._signature is None or self._signature.differs()

    def preview(self, adopt: set[str]) -> Look:
        """What a look would find if frozen parameters and buffers of these names were averaged too. Changes nothing."""
        modules = [module for _, module in named_modules(self._model)]
        gathering: list[Callable[[], object]] = [m.reshard for m in modules if isinstance(m, FSDP2)]
        handles: list[Any] = [handle for m in modules if hasattr(handle := getattr(m, "_handle", None), "reshard")]
        gathering += [partial(reshard_flat, handle) for handle in handles]
        for reshard in gathering:
            reshard()
        same = {known.present_id for known in self._known}
        names = self._adopted.union(adopt, (known.name for known in self._known))
        selected = self._selection.of(self._model, names, same)
        found = [present(entry) for entry in selected.entries]
        look = Look(selected, modules, gathering, bool(handles), found)
        if not (look.has_elements or self._elsewhere):
            name = type(self._model).__name__
            raise ValueError(f"{name} has no element in the tensors to average: are its weights held elsewhere?")
        return look

    def adopt(self, names: set[str]) -> Change | None:
        """Average frozen parameters or buffers of these names too, because a saved state has them."""
        if names.issubset(self.names):
            return None
        self._adopted |= names
        return self._scan()

    def _scan(self) -> Change | None:
        """Take the model as it is now. A look costs some microseconds; this costs what a walk over all modules does."""
        look = self.preview(set())
        if self.entries and look.found and look.is_sharded != self.is_sharded:
            raise ValueError("the model's parameters have become, or ceased to be, DTensors: make a new averager")
        self.selected, self.entries = look.selected, look.selected.entries
        self._places = [(entry.module, entry.key, entry.is_buffer) for entry in self.entries]
        self._modules, self._gathering = look.modules, look.gathering
        self.is_sharded, self._any_complex = look.is_sharded, any(tensor.is_complex() for tensor in look.found)
        self.names, self.shapes, self.local_shapes = look.names, look.shapes, look.local_shapes
        self.dtypes = [t.dtype for t in look.found]
        tensors = self.tensors()
        self.device = tensors[0].device if tensors or not self._elsewhere else self._elsewhere.device
        self.has_elements = look.has_elements
        self.blocks = blocks_of(tensors, self.device)
        self.numel = sum(t.numel() for t in tensors)
        self.dtype = self._asked or (torch.float64 if torch.float64 in {t.dtype for t in tensors} else torch.float32)
        alike = all(t.dtype == self.dtype and t.device == self.device for t in tensors)
        self.is_single = alike and self._masters is None
        self._is_small = self.blocks[0].is_small if self.blocks else False
        self._is_plain = not (self._masters or self.is_sharded or self._any_complex or self._gathering)
        self.version += 1
        self._staging = self._gathered = None
        self._signature = Signature(self._modules, self.entries)
        earlier = self._known
        self._known = [
            # FSDP1 makes and drops the objects of its parameters as it goes.
            Known(name, shapes, tensor.numel(), None if look.is_flat else reference_to(original))
            for name, shapes, tensor, original in zip(
                self.names, zip(self.shapes, self.local_shapes), tensors, look.found, strict=True
            )
        ]
        return change_of(earlier, self._known, look.found, self.entries) if self.version > 1 else None

    def _reshard(self) -> None:
        """FSDP may hold gathered parameters, whole tensors, after a pass."""
        for reshard in self._gathering:
            reshard()

    def global_tensors(self) -> list[Tensor]:
        """The live tensors, detached, in the order of `names`; DTensors where they are spread over ranks."""
        self._reshard()
        detached = [tensor.detach() for tensor in self._live()]
        return [real(tensor) for tensor in detached] if self._any_complex else detached

    def _live(self) -> list[Tensor]:
        """The objects that the modules have now."""
        return [(module._buffers if is_buffer else module._parameters)[key] for module, key, is_buffer in self._places]  # type: ignore[misc]

    def tensors(self) -> list[Tensor]:
        """The live tensors that are on this rank, detached, in the order of `names`."""
        tensors = self.global_tensors()
        return [real(local(tensor)) for tensor in tensors] if self.is_sharded else tensors

    def sources(self, required: bool = True, look: Look | None = None) -> list[Tensor]:
        """What snapshots are read from: `tensors()`, and in the place of those that have one their masters.

        Args:
            required: whether parameters of fewer than 32 bits must have a master.
            look: of another look at the model than the last one.
        Raises:
            ValueError: a parameter has no master, and must have one.
        """
        entries = self.entries if look is None else look.selected.entries
        tensors = self.tensors() if look is None else [real(local(tensor.detach())) for tensor in look.found]
        return tensors if self._masters is None else self._masters.live(entries, tensors, required)

    def check_masters(self, before_swap: bool = False) -> None:
        """Refuse masters that the model was not rounded from: before the first snapshot and every swap.

        Raises:
            ValueError: so it is; or before the first snapshot, one is missing.
        """
        if self._masters is not None and (before_swap or self.masters_unread):
            if not before_swap:
                self.sources()
                self.masters_unread = False
            self._masters.check(self.entries, self.tensors())

    def write_masters(self, write: Callable[[list[Tensor]], object]) -> None:
        """Overwrite the masters, if there are any, with what `write` puts into tensors like the model's."""
        if self._masters is not None:
            tensors = self.tensors()
            values = [torch.empty_like(tensor, dtype=self.dtype) for tensor in tensors]
            write(values)
            self._masters.overwrite(self.entries, tensors, values)

    def index_by_id(self) -> dict[int, int]:
        """The place of each tensor, by the id of the object that its module has."""
        return {id(tensor): index for index, entry in enumerate(self.entries) if (tensor := entry.tensor()) is not None}

    def read(self) -> Iterator[tuple[Block, list[Tensor]]]:
        """Each block with its current values: flat tensors of one type, on one device, that make it up in order.

        They are views of the model where it has them so. Else, and where they would be many and small, they are scratch
        space, to be read before the next block is asked for.
        """
        if len(self.blocks) == 1 and self._is_small:  # a small model, where every operation on a tensor counts
            if self._gathered is None:
                self._gathered = self.views(self.scratch())
            torch._foreach_copy_(self._gathered, self._live() if self._is_plain else self.sources())
            yield self.blocks[0], [self.scratch()]
            return
        tensors = self.sources()
        for block in self.blocks:
            parts = [part.of(tensors[part.index]) for part in block.parts]
            if block.is_small or any(t.dtype != self.dtype or t.device != self.device for t in parts):
                staged = self.scratch()[: block.stop - block.start]
                torch._foreach_copy_(staged.split(block.sizes), parts)
                parts = [staged]
            yield block, parts

    def merged(self) -> str:
        """The first module that has merged low-rank weights into others (loralib, PEFT) and holds averaged ones."""
        merged = [m for m in self._modules if getattr(m, "merged", False) is True]
        mine = {id(entry.module) for entry in self.entries} if merged else set()
        found = [type(m).__name__ for m in merged if any(id(part) in mine for part in m.modules())]
        return found[0] if found else ""

    def change(self) -> AbstractContextManager[None]:
        """The tensors get other values in the block: what was made of those before is dropped, or made anew."""
        return weights_change(self._modules)

    def written_by_passes(self) -> set[int]:
        """Ids of tensors into which a forward pass writes: an embedding with a `max_norm` shortens what it looks up."""
        shortening = [m for m in self._modules if getattr(m, "max_norm", None) is not None]
        return {id(parameter) for module in shortening for parameter in module.parameters(recurse=False)}

    def square_sums(self) -> list[Tensor]:
        """What tells, by `model.finite`, whether no tensor holds a NaN or an infinity; each is read once."""
        if self.is_single:  # whole: on an accelerator one launch for all
            return squares([tensor.reshape(-1) for tensor in self.tensors()])
        return [total for _, parts in self.read() for total in squares(parts)]

    def are_finite(self) -> bool:
        """Whether no tensor holds a NaN or an infinity. One wait for the device."""
        return finite(self.square_sums()) or not self.not_finite()

    def not_finite(self) -> str:
        """The name of the first tensor that is not finite; empty if all are. Slow."""
        for name, tensor in zip(self.names, self.sources()):
            if not torch.isfinite(tensor.to(self.dtype)).all():
                return name
        return ""

    def views(self, vector: Tensor) -> list[Tensor]:
        """A flat vector cut into the shapes of `tensors()`."""
        pieces = vector.split([torch.Size(shape).numel() for shape in self.local_shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, self.local_shapes, strict=True)]

    def write(self, values_of: Callable[[Block], Tensor], into: list[Tensor]) -> None:
        """Overwrite the model's tensors, or others like them, with `values_of(block)`, which is flat."""
        for block in self.blocks:
            pieces = values_of(block).split(block.sizes)
            with writing(into):  # not around the line above: what it makes is changed elsewhere
                targets, values = [], []
                for part, piece in zip(block.parts, pieces, strict=True):
                    tensor = into[part.index]
                    whole = not tensor.is_contiguous()  # never cut into parts
                    targets.append(tensor if whole else tensor.view(-1)[part.start : part.stop])
                    values.append(piece.view(tensor.shape) if whole else piece)
                torch._foreach_copy_(targets, values)

    def scratch(self) -> Tensor:
        """Space for one block on the model's device."""
        if self._staging is None:
            size = max((block.stop - block.start for block in self.blocks), default=0)
            self._staging = torch.empty(size, dtype=self.dtype, device=self.device)
        return self._staging

    def __getstate__(self) -> dict[str, Any]:
        """Without memory that only caches, and whose views would come back as separate tensors."""
        emptied = dict.fromkeys(("_staging", "_gathered", "_signature"))
        known = [replace(tensor, identity=None) for tensor in self._known]
        identified = [tensor.identity is not None for tensor in self._known]
        return {**self.__dict__, **emptied, "_gathering": [], "_known": known, "_identified": identified}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The copied parameters are known by their objects at once: one may get another name before the next look."""
        self.__dict__.update(state)
        found = [
            entry.tensor() if told else None for entry, told in zip(self.entries, self.__dict__.pop("_identified"))
        ]
        self._known = [
            known if tensor is None else replace(known, identity=reference_to(tensor))
            for known, tensor in zip(self._known, found, strict=True)
        ]
