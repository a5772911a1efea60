"""Checksums that files have of their tensors, compared with the bytes that were read."""

import zlib

import torch
from torch import Tensor

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms.source import Source
from weight_averaging.offline.safetensors_files import bytes_of


class Checksums:
    """Those of the tensors of one checkpoint, as far as it has some."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._so_far: dict[str, int] = {}

    def see(self, name: str, part: Tensor, is_last: bool = True) -> None:
        """Take note of the next elements of a tensor, which are in memory now.

        Raises:
            SnapshotError: all have been seen, and are not as the checkpoint says.
        """
        expected = self._source.checksum(name)
        if expected is None:
            return
        if not part.is_contiguous():  # transposed, say: whole, and not in the order in which it was saved
            part = torch.empty(0, dtype=torch.uint8).set_(part.untyped_storage())
        found = zlib.crc32(bytes_of(part), self._so_far.pop(name, 0))
        if not is_last:
            self._so_far[name] = found
        elif found != expected:
            raise SnapshotError(f"{self._source.path} is damaged: {name} is not as its checksum in the file says")
