"""Whole tensors that are put together from parts, until what writes them can take them all at once."""

import contextlib
import mmap
import tempfile
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from weight_averaging.offline.layouts import Layout, nbytes
from weight_averaging.offline.safetensors_files import bytes_of

_ALIGNED = 64  # bytes


class Held:
    """In memory; or on disk, where that would be more than `most` bytes.

    On disk it is a file without a name, of which a kill leaves nothing. The system keeps in memory what fits.

    Args:
        layout: of all the tensors.
        path: what they are for; the file is in the same folder.
        most: bytes of memory; None for as many as there are.
    Raises:
        OSError: the disk is full, or the like; it has the name of `path`.
    """

    def __init__(self, layout: Layout, path: Path, most: int | None) -> None:
        self._layout, self._path = layout, path
        self._on_disk = most is not None and nbytes(layout) > most
        self._state: dict[str, Tensor] = {}
        self._offsets: dict[str, int] = {}
        self._file: IO[bytes] | None = None
        self._written: set[str] = set()

    def put(self, name: str, start: int, part: Tensor) -> None:
        """Take the elements of a tensor from number `start` on."""
        shape, dtype = self._layout[name]
        if self._on_disk:
            try:
                self._write(name, start, part.detach().to("cpu", dtype).contiguous())
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self._path)) from None
            return
        if part.shape == shape:  # all of it; what is tied stays so
            self._state[name] = part
            return
        if name not in self._state:
            self._state[name] = torch.empty(shape, dtype=dtype)
        self._state[name].view(-1)[start : start + part.numel()].copy_(part.reshape(-1))

    def _write(self, name: str, start: int, part: Tensor) -> None:
        if self._file is None:
            self._size = 0
            for own, (shape, dtype) in self._layout.items():
                self._offsets[own] = self._size
                self._size += -(-torch.Size(shape).numel() * dtype.itemsize // _ALIGNED) * _ALIGNED
            self._file = tempfile.TemporaryFile(dir=self._path.absolute().parent)  # noqa: SIM115 - closed by `close`
            self._file.truncate(self._size)
        self._written.add(name)
        self._file.seek(self._offsets[name] + start * part.element_size())
        self._file.write(bytes_of(part))

    def state(self) -> dict[str, Tensor]:
        """Those that came, in the order of the layout; from disk each has a storage of its own."""
        if self._file is None:
            return {name: self._state[name] for name in self._layout if name in self._state}
        self._file.flush()
        mapped = mmap.mmap(self._file.fileno(), self._size, access=mmap.ACCESS_COPY)
        found = {}
        for name, (shape, dtype) in self._layout.items():
            if name not in self._written:
                continue
            count = torch.Size(shape).numel()
            tensor = torch.empty(0, dtype=dtype)
            if count:
                tensor = torch.frombuffer(mapped, dtype=dtype, count=count, offset=self._offsets[name])
            found[name] = tensor.view(shape)
        return found

    def close(self) -> None:
        """Free what is held, but for tensors that are in use."""
        self._state = {}
        if self._file is not None:
            with contextlib.suppress(OSError):  # the disk is full
                self._file.close()
