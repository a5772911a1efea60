"""What a look at a model finds."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import compress
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from weight_averaging.torch.model.selection import Entry, Selected
from weight_averaging.torch.model.tensors import is_sharded, local, real


@dataclass(frozen=True)
class Look:
    """The tensors to average, and what else the walk over the modules has seen.

    Attributes:
        selected, modules: the tensors that are averaged, and where; all modules.
        gathering: what spreads parameters over the ranks again that FSDP has gathered.
        is_flat: whether parameters are pieces of flat vectors (FSDP1), whose objects come and go.
        found: the tensors' objects.
    """

    selected: Selected
    modules: list[nn.Module]
    gathering: list[Callable[[], object]]
    is_flat: bool
    found: list[Tensor]

    @property
    def names(self) -> list[str]:
        return [entry.name for entry in self.selected.entries]

    @property
    def is_sharded(self) -> bool:
        return any(map(is_sharded, self.found))

    @property
    def has_elements(self) -> bool:
        """Whether there is one to average, on any rank that holds a shard. Pieces of flat vectors do not tell."""
        return self.is_flat or self.is_sharded or any(tensor.numel() for tensor in self.found)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Whole ones, the same on every rank."""
        return [tuple(real(tensor.detach()).shape) for tensor in self.found]

    @property
    def local_shapes(self) -> list[tuple[int, ...]]:
        return [tuple(real(local(tensor.detach())).shape) for tensor in self.found]


class Signature:
    """What would differ had the model changed: a few attributes of each module and tensor, some 0.1 us each.

    Nothing of it is cached. Hooks of torch tell of some ways to register a parameter, but none tells of writes to
    `_parameters`, of `.data =` or of `requires_grad_()`. Buffers may be replaced by others like them at any time, as
    some layers do.
    """

    def __init__(self, modules: list[nn.Module], entries: list[Entry]) -> None:
        self._modules = modules
        averaged = {(id(entry.module), entry.key) for entry in entries if not entry.is_buffer}
        self._averaged = [(id(m), key) in averaged for m in modules for key, _ in m._parameters.items()]
        self._buffers = [entry for entry in entries if entry.is_buffer]
        parameters, self._registered = self._registrations()
        self._layout = self._layouts(parameters)

    def differs(self) -> bool:
        """Whether the model is not as it was."""
        parameters, registered = self._registrations()
        return registered != self._registered or self._layouts(parameters) != self._layout

    def _registrations(self) -> tuple[list[Tensor | None], list[Any]]:
        """All parameters; and under which names parameters, buffers and modules are where, and which are trained."""
        parameters: list[Tensor | None] = []
        found: list[Any] = []
        children: list[nn.Module | None] = []
        for module in self._modules:  # most stores of most modules are empty
            if store := module._parameters:
                found += store.keys()
                parameters += store.values()
            if buffers := module._buffers:
                found += buffers.keys()
                found += [buffer is None for buffer in buffers.values()]
            found.append(None)  # here the one module ends
            if modules := module._modules:
                found += modules.keys()
                children += modules.values()
        found += map(id, parameters)
        found += map(id, children)
        found += [parameter is not None and parameter.requires_grad for parameter in parameters]
        return parameters, found

    def _layouts(self, parameters: list[Tensor | None]) -> list[Any]:
        """Of what is averaged; parameters registered as they were."""
        tensors = [*compress(parameters, self._averaged)]
        if self._buffers:
            tensors += [entry.tensor() for entry in self._buffers]
        return [None if t is None else (t.dtype, t.shape, t.is_contiguous(), t.device) for t in tensors]


def reshard_flat(handle: Any) -> None:
    """FSDP1's; before its first pass it has gathered nothing yet."""
    if hasattr(handle.flat_param, "_local_shard"):
        handle.reshard(True)


@runtime_checkable
class FSDP2(Protocol):
    def unshard(self) -> object: ...

    def reshard(self) -> object: ...


def present(entry: Entry) -> Tensor:
    tensor = entry.tensor()
    assert tensor is not None, entry.name
    return tensor
