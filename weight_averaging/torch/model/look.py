"""What a look at a model finds."""

from collections.abc import Callable
from dataclasses import dataclass
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
    def shapes(self) -> list[tuple[int, ...]]:
        """Whole ones, the same on every rank."""
        return [tuple(real(tensor.detach()).shape) for tensor in self.found]

    @property
    def local_shapes(self) -> list[tuple[int, ...]]:
        return [tuple(real(local(tensor.detach())).shape) for tensor in self.found]


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
