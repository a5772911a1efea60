"""Averages that are folders: put in place whole."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from torch import Tensor

from weight_averaging.atomic_file import partial_beside, put_in_place
from weight_averaging.offline.forms.source import WholeFolder
from weight_averaging.offline.forms.strangers import is_orbax
from weight_averaging.offline.forms.weights_of_folder import is_folder
from weight_averaging.offline.layouts import Layout


def is_checkpoint_folder(path: Path) -> bool:
    """Whether a folder is a checkpoint, which may be written over if that is asked for."""
    return is_folder(path) or (path / ".metadata").is_file() or is_orbax(path)


def put_folder(partial: Path, path: Path, overwrite: bool) -> None:
    """Move a folder to its place. OSError if that is taken, and not by a checkpoint to write over."""
    if overwrite and is_checkpoint_folder(path):
        put_in_place(partial, path)
        return
    try:
        os.replace(partial, path)  # over an empty folder too
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


class WholeFolderWriter:
    """A folder that a library writes, by pieces if the library does.

    Args:
        most: bytes of memory to stay within; None for as many as there are.
    """

    def __init__(
        self,
        path: Path,
        source: WholeFolder,
        layout: Layout,
        about: Mapping[str, str],
        overwrite: bool,
        most: int | None = None,
    ) -> None:
        self._path, self._source, self._layout, self._about = path, source, layout, about
        self._overwrite, self._most = overwrite, most

    def write_part(self, name: str, start: int, part: Tensor) -> None:
        self._contents.put(name, start, part)

    def __enter__(self) -> "WholeFolderWriter":
        self._partial = partial_beside(self._path)
        self._partial.mkdir()
        try:
            self._contents = self._source.contents(self._partial, self._layout, self._most)
        except BaseException:
            shutil.rmtree(self._partial, ignore_errors=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._contents.end(self._about)
                put_folder(self._partial, self._path, self._overwrite)
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)
