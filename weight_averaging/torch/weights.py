"""A model's floating-point tensors as one flat float32 vector, read and written in blocks.

Averaging is bound by memory traffic, so the vector is walked in blocks that stay in the processor's cache while all
averages take them in: for these the weights are read from memory once, and once before that to check them.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

# float32 elements a block: 8 MiB stays in a last-level cache, yet an operation on it outweighs the cost of starting
# threads. On an accelerator larger blocks mean fewer launches. Of 2^16 to 2^21 the last was best on two cores.
CPU_BLOCK = 1 << 21
ACCELERATOR_BLOCK = 1 << 26
SMALL = 1 << 15  # elements of a tensor


@dataclass(frozen=True)
class Part:
    """The elements [start, stop) of one tensor, flattened."""

    index: int
    start: int
    stop: int


@dataclass(frozen=True)
class Block:
    """The range [start, stop) of the flat vector and the parts it is made of, in order."""

    start: int
    stop: int
    parts: tuple[Part, ...]

    @property
    def range(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def is_small(self) -> bool:
        """Whether its parts are so many and small that gathering them costs less than an operation on each."""
        return len(self.parts) > 1 and self.stop - self.start < len(self.parts) * SMALL

    @property
    def sizes(self) -> list[int]:
        return [part.stop - part.start for part in self.parts]


class LiveWeights:
    """The parameters, and if asked the floating-point buffers, of `model` as it is now.

    Tensors are looked up in their modules at every use, so that `model.to(...)` or a reassigned buffer is noticed.
    Frozen parameters (`requires_grad=False`) are constant and left out, as are buffers that are not persistent or
    hold a NaN or infinity at the start (an attention mask, say). Integer buffers are never touched. Of a parameter
    that is spread over ranks (DTensor, as under FSDP2) this rank's shard counts.

    Args:
        model: any module; wrappers (DDP, torch.compile) are fine and their prefixes are dropped from the names.
        buffers: whether floating-point buffers belong to the vector.
    Raises:
        ValueError: the model has nothing to average.
        TypeError: a parameter is complex.
    """

    def __init__(self, model: nn.Module, buffers: bool) -> None:
        self._owners: list[tuple[dict[str, Tensor], str]] = []
        # FSDP2's, which may hold gathered parameters.
        self._gathering = [m for m in model.modules() if hasattr(m, "unshard") and hasattr(m, "reshard")]
        names = []
        for name, owner, key in _floating_tensors(model, buffers):
            names.append(name)
            self._owners.append((owner, key))
        if not names:
            raise ValueError(f"{type(model).__name__} has no trainable floating-point parameter to average")
        self.names = clean_names(names)
        everywhere = self.global_tensors()
        self.shapes = [tuple(t.shape) for t in everywhere]  # the same on every rank
        self.is_sharded = any(map(is_sharded, everywhere))
        tensors = self.tensors()
        self.local_shapes = [tuple(t.shape) for t in tensors]
        self.device = tensors[0].device
        self.block_numel = CPU_BLOCK if self.device.type == "cpu" else ACCELERATOR_BLOCK
        self.plan = _plan([t.numel() for t in tensors], [t.is_contiguous() for t in tensors], self.block_numel)
        self.numel = self.plan[-1].stop
        self._staging: Tensor | None = None
        self._gathered: list[Tensor] | None = None  # views of the scratch space
        self._flat: Tensor | None = None
        self._reserve(tensors)  # at the start, so that a lack of memory shows before any training

    def global_tensors(self) -> list[Tensor]:
        """The live tensors, detached, in the order of `names`; DTensors where they are spread over ranks."""
        for module in self._gathering:
            module.reshard()  # type: ignore[operator]
        return [owner[key].detach() for owner, key in self._owners]

    def tensors(self) -> list[Tensor]:
        """The live tensors that are on this rank, detached, in the order of `names`."""
        tensors = self.global_tensors()
        return [local(t) for t in tensors] if self.is_sharded else tensors

    def blocks(self) -> Iterator[tuple[Block, list[Tensor]]]:
        """Each block with its current values: flat float32 tensors on one device that make it up, in order.

        They are views of the model where it has them so; else, and where they would be many and small, scratch space,
        to be read before the next block is asked for.
        """
        tensors = self.tensors()
        if len(self.plan) == 1 and self.plan[0].is_small:  # a small model, where every operation on a tensor counts
            if self._gathered is None:
                self._gathered = self.views(self.scratch())
            torch._foreach_copy_(self._gathered, tensors)
            yield self.plan[0], [self.scratch()]
            return
        for block in self.plan:
            parts = [_flat_part(tensors[part.index], part) for part in block.parts]
            if block.is_small or any(t.dtype != torch.float32 or t.device != self.device for t in parts):
                staged = self.scratch()[: block.stop - block.start]
                torch._foreach_copy_(staged.split(block.sizes), parts)
                parts = [staged]
            yield block, parts

    def are_finite(self) -> bool:
        """Whether no tensor holds a NaN or an infinity; each is read once."""
        return finite([part for _, parts in self.blocks() for part in squares(parts)])

    def keep_raw(self) -> list[Tensor]:
        """Copy the live tensors aside, into memory that is reused."""
        tensors = self.tensors()
        if [t.dtype for t in self._raw] != [t.dtype for t in tensors]:
            self._reserve(tensors)
        torch._foreach_copy_(self._raw, tensors)
        return self._raw

    def flat_copy(self) -> Tensor:
        """A flat float32 copy on the model's device, in memory that is reused: that of the raw weights if it can be."""
        if self._raw_vector is not None:
            self.keep_raw()
        if self._raw_vector is not None:
            return self._raw_vector
        if self._flat is None:
            self._flat = torch.empty(self.numel, dtype=torch.float32, device=self.device)
        torch._foreach_copy_(self.views(self._flat), self.tensors())
        return self._flat

    def _reserve(self, tensors: list[Tensor]) -> None:
        self._raw_vector = None
        if all(t.dtype == torch.float32 and t.device == self.device for t in tensors):
            self._raw_vector = torch.empty(self.numel, dtype=torch.float32, device=self.device)
            self._raw = self.views(self._raw_vector)
        else:
            self._raw = [torch.empty_like(t) for t in tensors]

    def restore(self, raw: list[Tensor]) -> None:
        """Copy tensors back into the model."""
        torch._foreach_copy_(self.tensors(), raw)

    def views(self, vector: Tensor) -> list[Tensor]:
        """A flat vector cut into the shapes of `tensors()`."""
        pieces = vector.split([torch.Size(shape).numel() for shape in self.local_shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, self.local_shapes, strict=True)]

    def write(self, values_of: Callable[[Block], Tensor]) -> None:
        """Overwrite the model with `values_of(block)`, flat and float32, cast to each tensor's type."""
        tensors = self.tensors()
        for block in self.plan:
            for part, values in zip(block.parts, values_of(block).split(block.sizes), strict=True):
                tensor = tensors[part.index]
                if tensor.is_contiguous():
                    tensor.view(-1)[part.start : part.stop].copy_(values)
                else:  # never cut into parts
                    tensor.copy_(values.view(tensor.shape))

    def scratch(self) -> Tensor:
        """Space for one block on the model's device."""
        if self._staging is None:
            size = max(block.stop - block.start for block in self.plan)
            self._staging = torch.empty(size, dtype=torch.float32, device=self.device)
        return self._staging


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor: one that is spread over ranks, or kept alike on all."""
    return hasattr(tensor, "to_local") and hasattr(tensor, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a DTensor; any other tensor as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined,no-any-return]


def squares(parts: list[Tensor]) -> list[Tensor]:
    """The square sums of flat float32 tensors: a dot product reads memory once."""
    return [torch.dot(part, part) for part in parts]


def finite(sums: list[Tensor]) -> bool:
    """Whether all square sums are finite, and so all that went into them. One wait for the device.

    Finite weights beyond 1e19 count as infinite too.
    """
    if len(sums) == 1:
        return math.isfinite(sums[0].item())
    return bool(torch.isfinite(torch.stack(sums)).all())


def is_finite(values: Tensor) -> bool:
    """Whether all of a flat float32 tensor is finite, as by `finite`."""
    return finite(squares([values]))


def clean_names(names: list[str]) -> list[str]:
    """Names without the prefixes of torch.compile (`_orig_mod.`) and DDP (`module.`).

    Where dropping them would make two names equal, all are kept as they are.
    """
    cleaned = []
    for name in names:
        name = name.replace("_orig_mod.", "")
        while name.startswith("module."):
            name = name.removeprefix("module.")
        cleaned.append(name)
    return cleaned if len(set(cleaned)) == len(cleaned) else list(names)


def _floating_tensors(model: nn.Module, buffers: bool) -> Iterator[tuple[str, dict[str, Tensor], str]]:
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        dot = prefix + "." if prefix else ""
        for key, parameter in module._parameters.items():
            if parameter is None or not parameter.requires_grad or id(parameter) in seen:
                continue
            if not parameter.is_floating_point():
                raise TypeError(f"parameter {dot + key} is {parameter.dtype}; only real floating-point can be averaged")
            seen.add(id(parameter))
            yield dot + key, module._parameters, key  # type: ignore[misc]
        for key, buffer in module._buffers.items() if buffers else ():
            if buffer is None or id(buffer) in seen or key in module._non_persistent_buffers_set:
                continue
            if buffer.is_floating_point() and bool(torch.isfinite(buffer).all()):
                seen.add(id(buffer))
                yield dot + key, module._buffers, key  # type: ignore[misc]


def _plan(numels: list[int], contiguous: list[bool], block_numel: int) -> list[Block]:
    """Cut the flat vector into blocks of up to `block_numel`; a tensor that is not contiguous is never cut."""
    plan: list[Block] = []
    parts: list[Part] = []
    start = stop = 0

    def close() -> None:
        nonlocal parts, start
        if parts:
            plan.append(Block(start, stop, tuple(parts)))
            parts, start = [], stop

    for index, (numel, cuttable) in enumerate(zip(numels, contiguous, strict=True)):
        if not cuttable:
            if stop - start + numel > block_numel:
                close()
            parts.append(Part(index, 0, numel))
            stop += numel
            continue
        # Fill up the open block, then go on in whole blocks.
        room = block_numel - (stop - start)
        edges = [0, *range(room, numel, block_numel), numel] if 0 < room < numel else [0, numel]
        if room <= 0:
            close()
            edges = [*range(0, numel, block_numel), numel]
        for low, high in pairwise(edges):
            if stop - start >= block_numel:
                close()
            parts.append(Part(index, low, high))
            stop += high - low
    close()
    return plan


def _flat_part(tensor: Tensor, part: Part) -> Tensor:
    flat = tensor.reshape(-1)
    return flat if part.stop - part.start == flat.numel() else flat[part.start : part.stop]
