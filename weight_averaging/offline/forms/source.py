"""What every form of checkpoint has to offer."""

import abc
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, Protocol

from torch import Tensor

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms.contents.scores import Score
from weight_averaging.offline.layouts import Layout


class Source(abc.ABC):
    """A checkpoint whose names, shapes and types are known, and whose weights are read when asked for.

    Attributes:
        form: what users call it.
        path: a file or a folder.
        layout: shape and type by name, as saved.
        others: the same of models beside the one of `layout`, by KEY:NAME: an EMA, a discriminator, a file of its own.
        counters: how far training was, as the checkpoint itself tells, by the key that has it (`global_step`, `epoch`).
        average: of what is itself an average, which one; else empty.
        note: what is unusual about what is averaged; else empty.
        own_names: whether names are those of the model for sure, so that nothing in them is a wrapper's.
        mapped: tensors are contiguous views of mapped files, whose bytes are read when they are used.
        latest, frozen: names of what averagers leave as training has it, and of what of it is frozen.
    """

    form: str
    layout: Layout
    average: str = ""
    note: str = ""
    own_names: bool = False
    mapped: bool = False
    latest: frozenset[str] = frozenset()
    frozen: frozenset[str] = frozenset()

    def __init__(self, path: Path) -> None:
        self.path = path
        self.others: Layout = {}
        self.counters: Mapping[str, int] = {}

    @abc.abstractmethod
    def read(self, names: list[str]) -> dict[str, Tensor]:
        """The tensors of these names, of `layout` and `others`; their bytes are read when used, where possible."""

    def checksum(self, name: str) -> int | None:
        """The CRC-32 that the bytes of a tensor should have; None if it is not known, or was compared already."""
        return None

    def left_out(self, names: Collection[str]) -> list[str]:
        """What of the checkpoint is not in one of the same form that has tensors of these names, in words."""
        return []

    def scores(self) -> Mapping[str, Score]:
        """The metrics that the checkpoint has of itself, by name."""
        return {}

    def learning_rate(self) -> float | None:
        """The largest of its optimizers, or of their schedulers; None if there is none."""
        return None

    def counter(self, key: str) -> int | None:
        """The whole number at a key of the checkpoint, dots leading further in; None if there is none."""
        return self.counters.get(key)


class WholeFile(Source):
    """One file, like which averages can be written.

    Attributes:
        unmarked: what users call such a file, if it cannot say of itself that it is an average; else empty.
    """

    unmarked: str = ""
    loading: str

    @abc.abstractmethod
    def fits(self, path: Path) -> bool:
        """Whether an average at `path` would be such a file, by its name."""

    @abc.abstractmethod
    def write(self, state: Mapping[str, Tensor], file: IO[bytes], about: Mapping[str, str]) -> None:
        """Write the file with these weights instead of its own, without what is for training alone.

        Args:
            state: of the model, and of `others`; none of those that are to be left out.
            about: strings about the average, that go into the file.
        """

    def check(self, layout: Layout) -> None:
        """Raise a SnapshotError if a file of this form cannot hold tensors of these shapes and types."""


class Contents(Protocol):
    """What a folder is going to hold."""

    def put(self, name: str, start: int, part: Tensor) -> None:
        """Take the elements of a tensor from number `start` on."""

    def end(self, about: Mapping[str, str]) -> None:
        """Write all that is not in the folder yet: see `WholeFile.write`."""


class WholeFolder(Source):
    """A folder, like which averages can be written."""

    loading: str

    @abc.abstractmethod
    def contents(self, folder: Path, layout: Layout, most: int | None) -> Contents:
        """What writes a checkpoint with tensors of this layout into an empty folder.

        Args:
            most: bytes of memory to stay within, as far as the library does; None for as many as there are.
        """


def ending(path: Path) -> str:
    """The suffix of a path: `.pth.tar` is one."""
    return ".pth.tar" if path.name.endswith(".pth.tar") else path.suffix


def joined(key: str, name: str) -> str:
    """The name in `others` of a tensor of the model at `key`."""
    return f"{key}:{name}"


def key_of(name: str) -> str:
    """The key in a name of `others`."""
    return name.partition(":")[0]


class NoModelError(SnapshotError):
    """A file without a state dict.

    Attributes:
        for_training: it holds the state of an optimizer or the like.
    """

    def __init__(self, message: str, for_training: bool) -> None:
        super().__init__(message)
        self.for_training = for_training
