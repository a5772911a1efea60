"""Files of Equinox, `.eqx`: the leaves of a tree one after another, each as numpy.save writes it, without names.

A line of text may come first: its documentation has hyperparameters there. Leaves are called leaf_0, leaf_1, ... here.
"""

import ast
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple

import torch
from torch import Tensor

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms.flax_format import tensor_of
from weight_averaging.offline.forms.source import WholeFile
from weight_averaging.offline.layouts import Layout
from weight_averaging.offline.safetensors_files import bytes_of

_MAGIC = b"\x93NUMPY"
_MOST = 1 << 16  # bytes of a header, and of the line before
# V2 is what numpy makes of bfloat16, which JAX reads as that.
_TYPES = {
    "<f2": torch.float16, "<f4": torch.float32, "<f8": torch.float64, "|V2": torch.bfloat16, "<V2": torch.bfloat16,
    "<c8": torch.complex64, "<c16": torch.complex128, "|b1": torch.bool, "|i1": torch.int8, "|u1": torch.uint8,
    "<i2": torch.int16, "<i4": torch.int32, "<i8": torch.int64, "<u2": torch.uint16, "<u4": torch.uint32,
    "<u8": torch.uint64,
}  # fmt: skip


class _Leaf(NamedTuple):
    """Where one is: its first byte, where its elements begin, and where it ends."""

    start: int
    data: int
    stop: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class EquinoxSource(WholeFile):
    """One file. Single numbers in it are those of the latest: they may be settings.

    Raises:
        SnapshotError: it is damaged, or holds what is no array.
    """

    form = "file of Equinox"
    unmarked = "file of Equinox"
    loading = 'equinox.tree_deserialise_leaves("{path}", model)'
    own_names = True

    def __init__(self, path: Path, keys: Sequence[str] = ()) -> None:
        super().__init__(path)
        if keys:
            raise SnapshotError(f"{path} is one tree without names, and has none at --key={keys[0]}")
        with open(path, "rb") as file:
            leaves = _leaves(path, file)
        self._leaves = {f"leaf_{number}": leaf for number, leaf in enumerate(leaves)}
        self.layout: Layout = {name: (leaf.shape, leaf.dtype) for name, leaf in self._leaves.items() if leaf.shape}
        self.note = "a file of Equinox has no names: an optimizer's state in it would be averaged too"

    def read(self, names: list[str]) -> dict[str, Tensor]:
        found = {}
        with open(self.path, "rb") as file:
            for name in names:
                leaf = self._leaves[name]
                file.seek(leaf.data)
                found[name] = tensor_of(file.read(leaf.stop - leaf.data), leaf.dtype).view(leaf.shape)
        return found

    def fits(self, path: Path) -> bool:
        return path.suffix == ".eqx"

    def check(self, layout: Layout) -> None:
        if changed := [name for name, (_, dtype) in layout.items() if dtype != self._leaves[name].dtype]:
            raise SnapshotError(f"{self.path}: Equinox loads {changed[0]} in its own type alone: leave out --float32")

    def write(self, state: Mapping[str, Tensor], file: IO[bytes], about: Mapping[str, str]) -> None:
        with open(self.path, "rb") as old:
            file.write(old.read(min((leaf.start for leaf in self._leaves.values()), default=0)))
            for name, leaf in self._leaves.items():
                old.seek(leaf.start)
                file.write(old.read(leaf.data - leaf.start))
                file.write(bytes_of(state[name].contiguous()) if name in state else old.read(leaf.stop - leaf.data))


def _leaves(path: Path, file: BinaryIO) -> list[_Leaf]:
    size = path.stat().st_size
    at = _first(path, file)
    found: list[_Leaf] = []
    while at < size:
        file.seek(at)
        head = file.read(12)
        if head[:6] != _MAGIC or len(head) < 12:
            raise SnapshotError(f"{path} is damaged: leaf_{len(found)} in it is no array of numpy.save")
        wide = 4 if head[6] > 1 else 2  # bytes of the header's length
        length = int.from_bytes(head[8 : 8 + wide], "little")
        data = at + 8 + wide + length
        file.seek(at + 8 + wide)
        try:
            about = ast.literal_eval(file.read(length).decode("latin1").strip() if length <= _MOST else "")
            shape, code = tuple(map(int, about["shape"])), about["descr"]
            backwards = about["fortran_order"] and len(shape) > 1
        except (ValueError, SyntaxError, KeyError, TypeError, MemoryError):
            raise SnapshotError(f"{path} is damaged: leaf_{len(found)} has no header of numpy.save") from None
        if not isinstance(code, str) or code not in _TYPES or backwards or min(shape, default=0) < 0:
            raise SnapshotError(f"{path}: leaf_{len(found)} is of type {code}, or in an order, which is not read")
        stop = data + math.prod(shape) * _TYPES[code].itemsize
        if stop > size:
            raise SnapshotError(f"{path} is damaged or truncated: leaf_{len(found)} ends beyond it")
        found.append(_Leaf(at, data, stop, shape, _TYPES[code]))
        at = stop
    return found


def _first(path: Path, file: BinaryIO) -> int:
    """Where the first leaf is: at the beginning, or after a line."""
    head = file.read(_MOST)
    if head.startswith(_MAGIC):
        return 0
    at = head.find(b"\n" + _MAGIC) + 1
    if not at:
        raise SnapshotError(f"{path} is damaged, or no file of Equinox: no array of numpy.save begins in it")
    return at
