"""Where an average goes: a file of its own, or the form that its snapshots have. In place only when it is whole."""

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor

from weight_averaging.atomic_file import replacing
from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms.hugging_face import HuggingFaceSource
from weight_averaging.offline.forms.source import Source
from weight_averaging.offline.forms.torch_file import TorchSource
from weight_averaging.offline.layouts import Layout
from weight_averaging.offline.safetensors_files import SafetensorsWriter

_TORCH = (".pt", ".pth", ".pth.tar", ".bin", ".ckpt")


class Writer(contextlib.AbstractContextManager[Any], Protocol):
    """Takes every element of every tensor once, in any order, within its `with` block."""

    def write_part(self, name: str, start: int, part: Tensor) -> None:
        """Take the elements of a tensor from number `start` on."""


def ending(path: Path) -> str:
    """The suffix of a path: `.pth.tar` is one."""
    return ".pth.tar" if path.name.endswith(".pth.tar") else path.suffix


def is_folder_for(path: Path, source: Source) -> bool:
    """Whether an average at `path` would be a Hugging Face folder, as its snapshots are."""
    return isinstance(source, HuggingFaceSource) and ending(path) not in (".safetensors", *_TORCH)


def _is_like(path: Path, source: Source) -> bool:
    """Whether both are files of torch.save with the same suffix."""
    return isinstance(source, TorchSource) and ending(path) == ending(source.path)


def writer_for(path: Path, source: Source, layout: Layout, about: Mapping[str, str], float32: bool) -> Writer:
    """What writes an average to `path`.

    - `.safetensors`: tensor by tensor.
    - `.pt`, `.pth`, `.pth.tar`, `.bin`, `.ckpt`: held in memory until the end. Where snapshots have the same suffix, a
      checkpoint like theirs without what is for training alone; else a state dict.
    - A folder like theirs, where snapshots are Hugging Face folders.

    Args:
        source: the latest of the snapshots.
        layout: of the average, with names as in `source`.
        about: strings about the average, for safetensors.
        float32: whether floating-point tensors are written as float32 whatever they were.
    """
    about = {"format": "pt", **about}  # without which transformers would not read it
    if is_folder_for(path, source):
        assert isinstance(source, HuggingFaceSource)
        return _FolderWriter(path, source, layout, about, float32)
    if isinstance(source, TorchSource) and _is_like(path, source):
        return _TorchWriter(path, source.filled, layout)
    return state_dict_writer(path, layout, about)


def state_dict_writer(path: Path, layout: Layout, about: Mapping[str, str]) -> Writer:
    """What writes a state dict alone, as `.safetensors` or in a file of torch.save."""
    return SafetensorsWriter(path, layout, about) if path.suffix == ".safetensors" else _TorchWriter(path, dict, layout)


def check_path(path: Path, source: Source) -> None:
    """Before anything is read: whether an average can be written to `path`.

    Raises:
        SnapshotError: its suffix is none of those of `writer_for`, or it is `.ckpt` and snapshots are not.
    """
    if is_folder_for(path, source):
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise SnapshotError(f"{path} is there already: name a new folder")
    elif ending(path) == ".ckpt" and not _is_like(path, source):
        raise SnapshotError(f"{path}: a .ckpt is made of .ckpt files, not of a {source.form}: name a .safetensors")
    elif ending(path) not in (".safetensors", *_TORCH):
        raise SnapshotError(f"{path}: the name must end in .safetensors or .pt")


def loading(path: Path, source: Source) -> str:
    """What loads an average at `path`."""
    if isinstance(source, HuggingFaceSource) and is_folder_for(path, source):
        return source.loading.format(path=path)
    if isinstance(source, TorchSource) and _is_like(path, source):
        return source.loading.format(path=path)
    return state_dict_loading(path)


def state_dict_loading(path: Path) -> str:
    """What loads a state dict at `path`."""
    function = "safetensors.torch.load_file" if path.suffix == ".safetensors" else "torch.load"
    return f'model.load_state_dict({function}("{path}"))'


class _TorchWriter(Writer):
    """A file of torch.save, written when all tensors are there.

    Args:
        contents: makes the file's contents of the state dict.
        layout: of the state dict.
    """

    def __init__(self, path: Path, contents: Callable[[dict[str, Tensor]], Any], layout: Layout) -> None:
        self._path, self._contents, self._layout = path, contents, layout
        self._state: dict[str, Tensor] = {}

    def write_part(self, name: str, start: int, part: Tensor) -> None:
        shape, dtype = self._layout[name]
        if part.shape == shape:  # all of it; what is tied stays so
            self._state[name] = part
            return
        if name not in self._state:
            self._state[name] = torch.empty(shape, dtype=dtype)
        self._state[name].view(-1)[start : start + part.numel()].copy_(part.reshape(-1))

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            with replacing(self._path) as file:
                torch.save(self._contents(self._state), file)


class _FolderWriter(Writer):
    """A folder of Hugging Face, with the parts of `source` and all that lies beside them."""

    def __init__(
        self, path: Path, source: HuggingFaceSource, layout: Layout, about: Mapping[str, str], float32: bool
    ) -> None:
        self._path, self._source, self._layout, self._about, self._float32 = path, source, layout, about, float32
        self._partial = path.with_name(f".partial_{path.name}")

    def write_part(self, name: str, start: int, part: Tensor) -> None:
        self._parts[self._source.files[name]].write_part(name, start, part)

    def __enter__(self) -> "_FolderWriter":
        check_path(self._path, self._source)
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir()
        self._parts: dict[str, Writer] = {}
        with contextlib.ExitStack() as stack:
            for part in dict.fromkeys(self._source.files.values()):
                layout = {name: kind for name, kind in self._layout.items() if self._source.files[name] == part}
                path = self._partial / part
                self._parts[part] = stack.enter_context(state_dict_writer(path, layout, self._about))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._stack.__exit__(kind, error, traceback)
            if kind is None:
                self._source.write_rest(self._partial, self._layout, self._float32)
                os.replace(self._partial, self._path)  # over an empty folder too
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)
