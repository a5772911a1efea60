"""What every form of checkpoint has to offer."""

import abc
from pathlib import Path

from torch import Tensor

from weight_averaging.offline.layouts import Layout


class Source(abc.ABC):
    """A checkpoint whose names, shapes and types are known, and whose weights are read when asked for.

    Attributes:
        form: what users call it.
        path: a file or a folder.
        layout: shape and type by name, as saved.
        step, epoch: completed updates and epochs as the checkpoint itself tells; None if it does not.
        own_names: whether names are those of the model for sure, so that nothing in them is a wrapper's.
        mapped: tensors are contiguous views of mapped files, whose bytes are read when they are used.
        latest, frozen: names of what averagers leave as training has it, and of what of it is frozen.
    """

    form: str
    layout: Layout
    step: int | None = None
    epoch: int | None = None
    own_names: bool = False
    mapped: bool = False
    latest: frozenset[str] = frozenset()
    frozen: frozenset[str] = frozenset()

    def __init__(self, path: Path) -> None:
        self.path = path

    @abc.abstractmethod
    def read(self, names: list[str]) -> dict[str, Tensor]:
        """The tensors of these names; their bytes are read when they are used, where that is possible."""
