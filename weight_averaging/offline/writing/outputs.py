"""Where an average goes: a file of its own, or the form that its snapshots have. In place only when it is whole."""

import contextlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

import torch
from torch import Tensor

from weight_averaging.atomic_file import partial_beside, replacing
from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms import shown
from weight_averaging.offline.forms.flax_file import FlaxSource
from weight_averaging.offline.forms.hugging_face import HuggingFaceSource
from weight_averaging.offline.forms.records import add_about
from weight_averaging.offline.forms.source import Source, WholeFile, WholeFolder, ending
from weight_averaging.offline.held import Held
from weight_averaging.offline.layouts import Layout
from weight_averaging.offline.reading.order import is_aside
from weight_averaging.offline.safetensors_files import SafetensorsWriter
from weight_averaging.offline.writing.folders import WholeFolderWriter, is_checkpoint_folder, put_folder

_LOAD = 'torch.load("{path}"'
_TORCH = (".pt", ".pth", ".pth.tar", ".bin", ".ckpt")


class Writer(contextlib.AbstractContextManager[Any], Protocol):
    """Takes every element of every tensor once, in any order, within its `with` block."""

    def write_part(self, name: str, start: int, part: Tensor) -> None:
        """Take the elements of a tensor from number `start` on."""


def is_folder_for(path: Path, source: Source) -> bool:
    """Whether an average at `path` would be a folder, as its snapshots are."""
    return isinstance(source, HuggingFaceSource | WholeFolder) and ending(path) not in (".safetensors", *_TORCH)


def _is_like(path: Path, source: Source) -> bool:
    """Whether an average at `path` would be a file like its snapshots."""
    return isinstance(source, WholeFile) and source.fits(path)


def has_others(path: Path, source: Source) -> bool:
    """Whether an average at `path` has the other models of its snapshots too (`Source.others`)."""
    return is_folder_for(path, source) or _is_like(path, source)


def writer_for(
    path: Path,
    source: Source,
    layout: Layout,
    about: Mapping[str, str],
    float32: bool,
    overwrite: bool = False,
    most: int | None = None,
) -> Writer:
    """What writes an average to `path`.

    - `.safetensors`: tensor by tensor.
    - `.pt`, `.pth`, `.pth.tar`, `.bin`, `.ckpt`: held to the end, on disk if it is large. Where snapshots have the same
      suffix, a checkpoint like theirs without what is for training alone; else a state dict.
    - `.msgpack`, `checkpoint_STEP`: the same, where snapshots are Flax's.
    - A folder like theirs, where snapshots are folders of Hugging Face or of torch.distributed.checkpoint: the latter
      tensor by tensor.

    Args:
        source: the latest of the snapshots.
        layout: of the average, with names as in `source`; with `others` where the form has them (`has_others`).
        about: strings about the average, that go into the file, and tell it from a snapshot.
        float32: whether floating-point tensors are written as float32 whatever they were.
        overwrite: whether it takes the place of what is there.
        most: bytes of memory for what is held until the end; None for as many as there are.
    """
    about = {"format": "pt", **about}  # without which transformers would not read it
    if isinstance(source, WholeFolder) and is_folder_for(path, source):
        return WholeFolderWriter(path, source, layout, about, overwrite, most)
    if is_folder_for(path, source):
        assert isinstance(source, HuggingFaceSource)
        return _FolderWriter(path, source, layout, about, float32, overwrite, most)
    if isinstance(source, WholeFile) and source.fits(path):
        source.check(layout)
        return _WholeWriter(path, lambda state, file: source.write(state, file, about), layout, overwrite, most)
    return state_dict_writer(path, layout, about, overwrite, most)


def state_dict_writer(
    path: Path, layout: Layout, about: Mapping[str, str], overwrite: bool = False, most: int | None = None
) -> Writer:
    """What writes a state dict alone, as `.safetensors` or in a file of torch.save."""
    if path.suffix == ".safetensors":
        return SafetensorsWriter(path, layout, about, overwrite)

    def save(state: dict[str, Tensor], file: IO[bytes]) -> None:
        torch.save(state, file)
        add_about(file, about)

    return _WholeWriter(path, save, layout, overwrite, most)


def check_path(path: Path, source: Source | None = None, overwrite: bool = False) -> None:
    """Before anything is read: whether an average can be written to `path`.

    Args:
        source: of the average; None: a state dict is written.
    Raises:
        SnapshotError: its suffix is none of those of `writer_for`, or it is `.ckpt` and snapshots are not. So it is
            where it is there already and must not be written over.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise SnapshotError(f"--out={shown(path)}: torch writes names in UTF-8 alone: give another") from None
    if source is not None and is_folder_for(path, source):
        empty = path.is_dir() and not path.is_symlink() and not any(path.iterdir())
        if os.path.lexists(path) and not empty and not (overwrite and is_checkpoint_folder(path)):
            hint = "" if overwrite else ", or add --overwrite" if is_checkpoint_folder(path) else ""
            raise SnapshotError(f"{path} is there already: name a new folder{hint}")
        return
    if source is not None and ending(path) == ".ckpt" and not _is_like(path, source):
        raise SnapshotError(f"{path}: a .ckpt is made of .ckpt files, not of a {source.form}: name a .safetensors")
    like = source if isinstance(source, WholeFile) and source.fits(path) else None
    beside = source is not None and path.absolute().parent == source.path.absolute().parent
    if like is not None and like.unmarked and beside and not is_aside(path, [path]):
        raise SnapshotError(
            f"{path}: a {like.unmarked} cannot say that it is an average, and would be a snapshot there: name another "
            f"folder, or average{path.suffix or '.msgpack'}"
        )
    if like is None and ending(path) not in (".safetensors", *(_TORCH if source is not None else (".pt", ".pth"))):
        raise SnapshotError(f"{path}: the name must end in .safetensors or .pt")
    if path.is_dir():
        raise SnapshotError(f"{path} is a folder: name a file")
    if os.path.lexists(path) and not overwrite:
        raise SnapshotError(f"{path} is there already: name another file, or add --overwrite")


def loading(path: Path, source: Source) -> str:
    """What loads an average at `path`."""
    if (isinstance(source, HuggingFaceSource | WholeFolder) and is_folder_for(path, source)) or (
        isinstance(source, WholeFile) and source.fits(path)
    ):
        return _as_written(source.loading, path)
    if isinstance(source, FlaxSource) and path.suffix == ".safetensors":
        return f'flax.traverse_util.unflatten_dict(safetensors.flax.load_file({_quoted(path)}), sep=".")'
    return state_dict_loading(path, whole=not getattr(source, "extra", ()))


def state_dict_loading(path: Path, whole: bool = True) -> str:
    """What loads a state dict at `path`; not `whole`: without the extra state that its model has."""
    rest = "" if whole else ", strict=False"
    if path.suffix != ".safetensors":
        return _as_written(f'model.load_state_dict(torch.load("{{path}}"){rest})', path)
    first = "" if importlib.util.find_spec("safetensors") else ", after pip install safetensors"
    return f"model.load_state_dict(safetensors.torch.load_file({_quoted(path)}){rest}){first}"


def _as_written(line: str, path: Path) -> str:
    """A line for the file at `path`, which is there: torch has to be told where it is of more than plain data."""
    if f"{_LOAD})" in line and path.is_file():
        try:
            torch.load(path, map_location="meta", weights_only=True, mmap=True)  # nothing of it is read
        except Exception:  # what torch raises depends on what it refuses
            line = line.replace(_LOAD, f"{_LOAD}, weights_only=False")
    return line.replace('"{path}"', _quoted(path)).replace("{path}", str(path))


def _quoted(path: Path) -> str:
    """A path as Python has it between double quotes."""
    return json.dumps(str(path), ensure_ascii=False)


class _WholeWriter(Writer):
    """A file that is written when all tensors are there.

    Args:
        save: writes a state dict to a file.
        layout: of the state dict.
        most: bytes of memory for it; see `Held`.
    """

    def __init__(
        self,
        path: Path,
        save: Callable[[dict[str, Tensor], IO[bytes]], None],
        layout: Layout,
        overwrite: bool,
        most: int | None,
    ) -> None:
        self._path, self._save, self._overwrite = path, save, overwrite
        self._held = Held(layout, path, most)

    def write_part(self, name: str, start: int, part: Tensor) -> None:
        self._held.put(name, start, part)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                with replacing(self._path, overwrite=self._overwrite) as file:
                    try:
                        self._save(self._held.state(), file)
                    except RecursionError:
                        raise SnapshotError(f"{self._path}: what the checkpoints hold is nested too deeply") from None
        finally:
            self._held.close()


class _FolderWriter(Writer):
    """A folder of Hugging Face, with the parts of `source` and all that lies beside them."""

    def __init__(
        self,
        path: Path,
        source: HuggingFaceSource,
        layout: Layout,
        about: Mapping[str, str],
        float32: bool,
        overwrite: bool,
        most: int | None,
    ) -> None:
        self._path, self._source, self._layout, self._about, self._float32 = path, source, layout, about, float32
        self._overwrite, self._most = overwrite, most

    def write_part(self, name: str, start: int, part: Tensor) -> None:
        file, own = self._source.part_of(name)
        self._parts[file].write_part(own, start, part)

    def __enter__(self) -> "_FolderWriter":
        check_path(self._path, self._source, self._overwrite)
        self._partial = partial_beside(self._path)
        self._partial.mkdir()
        self._parts: dict[str, Writer] = {}
        layouts: dict[str, Layout] = {}
        for name, kind in self._layout.items():
            file, own = self._source.part_of(name)
            layouts.setdefault(file, {})[own] = kind
        most = None if self._most is None else self._most // len(layouts)
        try:
            with contextlib.ExitStack() as stack:
                for file, part in layouts.items():
                    path, source = self._partial / file, self._source.part(file)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    writer = writer_for(path, source, part, self._about, self._float32, most=most)
                    self._parts[file] = stack.enter_context(writer)
                self._stack = stack.pop_all()
        except BaseException:
            shutil.rmtree(self._partial, ignore_errors=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._stack.__exit__(kind, error, traceback)
            if kind is None:
                self._source.write_rest(self._partial, self._layout, self._float32)
                put_folder(self._partial, self._path, self._overwrite)
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)
