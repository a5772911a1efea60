"""Files in the safetensors format, mapped, and written tensor by tensor. Needs torch only.

The format's own library maps files at the same cost (docs/results/cost.md) and writes them only as a whole.

The format has eight bytes with the length of a JSON header, then the header, then the tensors' bytes. The header gives
type, shape and byte range of each tensor. https://github.com/huggingface/safetensors
"""

import contextlib
import ctypes
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import torch
from torch import Tensor

from weight_averaging.atomic_file import replacing
from weight_averaging.averages import SnapshotError
from weight_averaging.offline.remote import opened, ranges_of
from weight_averaging.words import counted

Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool, "U8": torch.uint8,
    "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64, "U16": torch.uint16,
    "U32": torch.uint32, "U64": torch.uint64, "C64": torch.complex64, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in TYPES.items()}
# In the metadata of our own snapshots: the names of what averagers leave as training has it, and of what is frozen.
LATEST, FROZEN = "latest", "frozen"
# The file beside them; in it, the step at which the run took another course than that which a snapshot is of.
MANIFEST, LEFT = "manifest.json", "left_at"
_RUN = 64 << 20  # bytes of small tensors that are fetched at once
_LARGE = 1 << 20  # bytes of a part
# What Linux does at this advice is to begin to write these pages, without waiting.
_WRITE = getattr(os, "POSIX_FADV_DONTNEED", 0)
MAX_HEADER = 100 << 20  # as the format's own library has it


class SafetensorsFile:
    """The header of a file, and its tensors when asked for.

    Attributes:
        layout: shape and type by name, in the order of the bytes.
        metadata: the file's own strings.
        aligned: all tensors are, so that `read` copies none.
    Raises:
        SnapshotError: the file is no whole safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = path.stat().st_size
        self._elsewhere = ranges_of(path)
        # Once: a file that another takes the place of, or that is deleted, stays what it was for whoever reads it.
        self._mapped = torch.from_file(str(path), shared=False, size=self._size, dtype=torch.uint8)
        contents = bytes_of(self._mapped)
        length = int.from_bytes(contents[:8], "little")
        if self._size < 8 or not 2 <= length <= min(MAX_HEADER, self._size - 8):
            raise SnapshotError(f"{path} is not a safetensors file, or is truncated: {self._size} bytes")
        text = bytes(contents[8 : 8 + length])
        try:
            header = json.loads(text.decode(), object_pairs_hook=_once, parse_constant=_no_number)
            self.metadata = _metadata(header.pop("__metadata__", {}))
            ranges = {name: _entry(name, entry) for name, entry in header.items()}
        except KeyError as error:
            raise SnapshotError(f"{path} has a header without, or of an unknown, {error}") from None
        except SnapshotError as error:
            raise SnapshotError(f"{path} is damaged: {error}") from None
        except (ValueError, TypeError, AttributeError, IndexError, RecursionError):
            raise SnapshotError(f"{path} is damaged: its header cannot be read") from None
        self._ranges: dict[str, tuple[torch.dtype, tuple[int, ...], int, int]] = {}
        last = 0
        for name, (dtype, shape, begin, end) in sorted(ranges.items(), key=lambda item: item[1][2:]):
            if begin != last:
                raise SnapshotError(
                    f"{path} is damaged: the bytes of {name} begin at {begin}, and those before it end at {last}"
                )
            last = end
            if 8 + length + end > self._size:
                raise SnapshotError(f"{path} is truncated: {self._size} bytes, and {name} ends at {8 + length + end}")
            self._ranges[name] = dtype, shape, 8 + length + begin, 8 + length + end
        if 8 + length + last != self._size:
            raise SnapshotError(
                f"{path} is damaged: {self._size - 8 - length - last} bytes at its end are of no tensor"
            )
        self.aligned = self._elsewhere is None and all(
            begin % dtype.itemsize == 0 for dtype, _, begin, _ in self._ranges.values()
        )
        self.layout = {name: (shape, dtype) for name, (dtype, shape, _, _) in self._ranges.items()}

    def read(self, names: list[str]) -> dict[str, Tensor]:
        """The tensors of these names, as views of the mapped file: their bytes are read when they are used."""
        tensors = {}
        fetched = {} if self._elsewhere is None else self._fetched(names, self._elsewhere)
        for name in names:
            dtype, shape, begin, end = self._ranges[name]
            piece = fetched[name] if fetched else self._mapped[begin:end]
            if not fetched and begin % dtype.itemsize:  # headers of some writers are not padded
                piece = piece.clone()
            tensors[name] = piece.view(dtype).view(shape)
        return tensors

    def _fetched(self, names: list[str], read: Callable[[int, int], bytes]) -> dict[str, Tensor]:
        """The bytes of these tensors from where the file is; of neighbours at once, since each call takes its time."""
        tensors: dict[str, Tensor] = {}
        run: list[str] = []

        def end_run() -> None:
            start, stop = self._ranges[run[0]][2], self._ranges[run[-1]][3]
            contents = bytearray(read(start, stop) if stop > start else b"")
            if len(contents) != stop - start:
                raise SnapshotError(f"{self.path} is truncated: {len(contents)} bytes of {stop - start} are there")
            whole = torch.frombuffer(contents, dtype=torch.uint8) if contents else torch.empty(0, dtype=torch.uint8)
            for name in run:
                _, _, begin, end = self._ranges[name]
                tensors[name] = whole[begin - start : end - start].clone()  # aligned
            run.clear()

        for name in sorted(set(names), key=lambda name: self._ranges[name][2:]):
            begin, end = self._ranges[name][2:]
            if run and (self._ranges[run[-1]][3] != begin or end - self._ranges[run[0]][2] > _RUN):
                end_run()
            run.append(name)
        if run:
            end_run()
        return tensors


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. SnapshotError if a key is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise SnapshotError("a name is in its header twice")
    return found


def _no_number(text: str) -> NoReturn:
    raise SnapshotError(f"{text} in its header")


def _metadata(found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise SnapshotError("its __metadata__ is not of strings")
    return found


def _entry(name: str, entry: Any) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    """Type, shape, and where the bytes begin and end, of one entry of a header."""
    name.encode()  # a ValueError if it is no text
    shape, offsets = entry["shape"], entry["data_offsets"]
    dtype = TYPES[entry["dtype"]]
    numbers = [*shape, *offsets]
    if not isinstance(shape, list) or len(offsets) != 2 or any(type(n) is not int or n < 0 for n in numbers):
        raise SnapshotError(f"shape or place of {name} are not of whole numbers")
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise SnapshotError(f"the bytes of {name} do not fit its shape")
    return dtype, tuple(shape), offsets[0], offsets[1]


class SafetensorsWriter:
    """Write a file tensor by tensor, in any order; it is in place, whole and on disk, when the `with` block ends.

    Args:
        path: where; see `replacing`.
        layout: shape and type of every tensor that will be written.
        metadata: strings for the header.
        overwrite: see `replacing`.
    Raises:
        SnapshotError: a type that the format does not have.
    """

    def __init__(
        self, path: Path, layout: Layout, metadata: Mapping[str, str] | None = None, overwrite: bool = True
    ) -> None:
        self._path, self._overwrite = path, overwrite
        header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        self._offsets: dict[str, int] = {}
        end = 0
        # Wide types first, so that every tensor is aligned.
        for name, (shape, dtype) in sorted(layout.items(), key=lambda item: -item[1][1].itemsize):
            if dtype not in _NAMES:
                raise SnapshotError(f"{path}: safetensors has no type for {name}, {dtype}")
            self._offsets[name] = end
            end += math.prod(shape) * dtype.itemsize
            entry = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [self._offsets[name], end]}
            header[name] = entry
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._layout = {name: (tuple(shape), dtype) for name, (shape, dtype) in layout.items()}
        self._left = {name: math.prod(shape) for name, (shape, _) in self._layout.items()}  # elements
        self._head = len(text).to_bytes(8, "little") + text
        self._size = len(self._head) + end

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one tensor. ValueError if it is not as announced, or written already."""
        if self._layout.get(name) != (tuple(tensor.shape), tensor.dtype):
            raise ValueError(
                f"{self._path}: {name} is not to be written, or not as {tensor.dtype} {list(tensor.shape)}"
            )
        self.write_part(name, 0, tensor)

    def write_part(self, name: str, start: int, part: Tensor) -> None:
        """Write the elements of a tensor from `start` on. ValueError if there are more of them than it has."""
        shape, dtype = self._layout[name]
        left = self._left.get(name, -1) - part.numel()
        if left < 0 or start + part.numel() > math.prod(shape) or part.dtype != dtype:
            raise ValueError(
                f"{self._path}: {name} is written already, or not of {math.prod(shape)} elements of {dtype}"
            )
        self._left[name] = left
        if not left:
            del self._left[name]
        part = part.detach().cpu().contiguous()
        if part.numel():
            self._file.seek(len(self._head) + self._offsets[name] + start * dtype.itemsize)
            self._file.write((ctypes.c_char * part.nbytes).from_address(part.data_ptr()))
            if part.nbytes >= _LARGE and hasattr(os, "posix_fadvise"):  # the disk begins now, not when all is there
                self._file.flush()
                os.posix_fadvise(self._file.fileno(), self._file.tell() - part.nbytes, part.nbytes, _WRITE)

    def __enter__(self) -> "SafetensorsWriter":
        with contextlib.ExitStack() as stack:
            self._file = stack.enter_context(replacing(self._path, overwrite=self._overwrite))
            self._file.write(self._head)
            self._file.truncate(self._size)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and self._left:
            with self._stack:
                raise ValueError(
                    f"{self._path}: {counted(len(self._left), 'tensor')} not written, {next(iter(self._left))}"
                )
        self._stack.__exit__(kind, error, traceback)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    found = hashlib.sha256()
    with opened(path) as file:
        while piece := file.read(8 << 20):
            found.update(piece)
    return found.hexdigest()


def bytes_of(data: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, which must outlive it."""
    if not data.numel():
        return memoryview(b"")
    return memoryview((ctypes.c_char * data.nbytes).from_address(data.data_ptr())).cast("B")
