"""The zip that a file of torch.save is since torch 1.6: checksums of its storages, and what average it holds."""

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from weight_averaging.averages import SnapshotError

ABOUT = "extra/weight_averaging.json"  # torch.load passes over records that it does not know


class Records:
    """What the zip says; nothing of a file that is none.

    torch.load does not look at the checksums. Some files have none (0), by `torch.serialization.set_crc32_options`.

    Attributes:
        about: strings about the average in the file, as `add_about` wrote them.
        is_zip: the file is one.
    Raises:
        SnapshotError: the pickle in it is not as its checksum says.
    """

    def __init__(self, path: Path) -> None:
        self.about: Mapping[str, str] = {}
        self._storages: list[tuple[int, int]] = []  # bytes and checksum, in the order in which they were saved
        self._checksums: dict[int, tuple[int, int]] = {}
        self.is_zip = zipfile.is_zipfile(path)
        if not self.is_zip:
            return
        try:
            with zipfile.ZipFile(path) as file:
                records = {info.filename.partition("/")[2]: info for info in file.infolist()}
                pickled = records.get("data.pkl")
                if pickled is not None and pickled.CRC:
                    file.read(pickled)
                if ABOUT in records and records[ABOUT].file_size < 1 << 20:
                    about = json.loads(file.read(records[ABOUT]))
                    self.about = about if isinstance(about, dict) else {}
        except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
            raise SnapshotError(f"{path} is damaged: {error}") from None
        for number in range(len(records)):
            if (info := records.get(f"data/{number}")) is None:
                break
            plain = info.compress_type == zipfile.ZIP_STORED
            self._storages.append((info.file_size, info.CRC if plain else 0))

    def place(self, storages: list[torch.UntypedStorage]) -> None:
        """Tell the storages of the file in the order in which they were read, which is that of their numbers."""
        if [storage.nbytes() for storage in storages] == [size for size, _ in self._storages]:
            found = zip(storages, self._storages, strict=True)
            self._checksums = {storage.data_ptr(): (size, checksum) for storage, (size, checksum) in found if checksum}

    def checksum(self, tensor: Tensor) -> int | None:
        """The CRC-32 of a tensor's bytes; None if it is not known, or the tensor has a storage with others."""
        storage = tensor.untyped_storage()
        size, checksum = self._checksums.get(storage.data_ptr(), (0, 0))
        return checksum if checksum and tensor.nbytes == size == storage.nbytes() else None


def check_all(path: Path) -> None:
    """Compare all records of a zip with their checksums. SnapshotError if one differs."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as file:
            for info in file.infolist():
                if info.CRC:
                    with file.open(info) as record:
                        while record.read(1 << 20):
                            pass
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        raise SnapshotError(f"{path} is damaged: {error}") from None


def add_about(file: IO[bytes], about: Mapping[str, str]) -> None:
    """Write strings about an average into a file that torch.save just wrote."""
    with zipfile.ZipFile(file, "a") as records:
        top = records.namelist()[0].partition("/")[0]
        records.writestr(zipfile.ZipInfo(f"{top}/{ABOUT}"), json.dumps(dict(about)))
