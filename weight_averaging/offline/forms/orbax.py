"""Checkpoints of Orbax: a folder for each step of a CheckpointManager, or one of a StandardCheckpointer.

They are read and written by Orbax itself, which has to be installed. A model is in memory whole.
"""

import importlib.util
import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms.contents import is_for_training
from weight_averaging.offline.forms.distributed import ABOUT
from weight_averaging.offline.forms.flax_file import models_in
from weight_averaging.offline.forms.flax_format import Array, leaves, tensor_of
from weight_averaging.offline.forms.hugging_face import read_json
from weight_averaging.offline.forms.source import WholeFolder, joined
from weight_averaging.offline.held import Held
from weight_averaging.offline.layouts import Layout
from weight_averaging.offline.safetensors_files import bytes_of

_TREE = "_METADATA"  # in a folder that holds a tree of arrays
_OF_ONE = 'StandardCheckpointer().restore("{path}")'
_OF_MANAGER = "CheckpointManager(FOLDER).restore(STEP), where {path} is FOLDER/STEP"
_MAIN = ("default", "state", "train_state", "params", "model")

Place = tuple[str, ...]


def is_installed() -> bool:
    return all(importlib.util.find_spec(name) for name in ("orbax", "jax"))


class OrbaxFolder(WholeFolder):
    """One checkpoint.

    Raises:
        SnapshotError: it is damaged, or holds no arrays, or none at one of `keys`.
    """

    form = "checkpoint of Orbax"

    def __init__(self, path: Path, keys: Sequence[str] = ()) -> None:
        super().__init__(path)
        items = [""] if (path / _TREE).is_file() else [one.parent.name for one in sorted(path.glob(f"*/{_TREE}"))]
        items.sort(key=lambda item: _MAIN.index(item) if item in _MAIN else len(_MAIN))
        self._trees = {item: _metadata(path / item) for item in items}
        models: dict[str, tuple[str, Place, Any]] = {}  # the item that each is in, where there, and its tree
        for item, tree in self._trees.items():
            if item and is_for_training(item, tree):
                continue
            for key, model in models_in(_as_arrays(tree)).items():
                name = ".".join(filter(None, (item if len(items) > 1 else "", key)))
                models[name] = item, (key,) if key else (), model
        for key in keys:
            if key not in models:
                raise SnapshotError(f"{path} has no arrays at --key={key}; it has some at {', '.join(models)}")
        if not models:
            raise SnapshotError(f"{path} holds no arrays of floating-point numbers")
        self.layout: Layout = {}
        self._places: dict[str, tuple[str, Place]] = {}
        for number, key in enumerate(keys or models):
            item, top, model = models[key]
            for place, array in leaves(model):
                name = ".".join(place)
                name = joined(key, name) if number else name
                if array.dtype is None or name in self._places:
                    what = "is of a type that torch does not have" if array.dtype is None else "is there twice"
                    raise SnapshotError(f"{path}: {name} {what}")
                (self.others if number else self.layout)[name] = array.shape, array.dtype
                self._places[name] = item, (*top, *place)
        self.average = str(read_json(path / ABOUT).get("average", "")) if (path / ABOUT).is_file() else ""
        one = "" in items
        self.loading = f"orbax.checkpoint.{_OF_ONE if one else _OF_MANAGER}"

    def read(self, names: list[str]) -> dict[str, Tensor]:
        kinds = self.layout | self.others
        whole = {item: _restored(self.path / item, self._trees[item]) for item in {self._places[n][0] for n in names}}
        found = {}
        for name in names:
            item, place = self._places[name]
            shape, dtype = kinds[name]
            found[name] = tensor_of(_at(whole[item], place).tobytes(), dtype).view(shape)
        return found

    def left_out(self, names: Collection[str]) -> list[str]:
        found = []
        for item, tree in self._trees.items():
            for key, inner in tree.items() if isinstance(tree, Mapping) else ():
                if is_for_training(key, inner) or (item and is_for_training(item, tree)):
                    found.append(".".join(filter(None, (item if len(self._trees) > 1 else "", str(key)))))
        return found

    def contents(self, folder: Path, layout: Layout, most: int | None) -> "_Contents":
        return _Contents(self, folder, layout, most)

    def write(self, state: Mapping[str, Tensor], folder: Path, about: Mapping[str, str]) -> None:
        """Write a checkpoint with these weights into an empty folder."""
        import orbax.checkpoint as ocp

        for item, tree in self._trees.items():
            if item and is_for_training(item, tree):
                continue
            whole = _restored(self.path / item, tree)
            for name, value in state.items():
                of, place = self._places[name]
                if of == item:
                    outer = _at(whole, place[:-1])
                    key: Any = int(place[-1]) if isinstance(outer, list) else place[-1]
                    saved = outer[key]
                    outer[key] = _array_of(value, saved)
            with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
                checkpointer.save((folder / item).absolute(), args=ocp.args.StandardSave(whole), force=True)
        for path in self.path.iterdir():
            inner = folder / path.name
            if not inner.exists() and path.name in ("_CHECKPOINT_METADATA", "commit_success.txt"):
                shutil.copyfile(path, inner)
            elif path.is_dir() and not inner.exists() and "" not in self._trees and path.name not in self._trees:
                shutil.copytree(path, inner)  # JSON beside
        (folder / ABOUT).write_text(json.dumps(dict(about)) + "\n")


class _Contents:
    """A checkpoint that is written when all tensors are there, as Orbax does."""

    def __init__(self, source: OrbaxFolder, folder: Path, layout: Layout, most: int | None) -> None:
        self._source, self._folder, self._held = source, folder, Held(layout, folder, most)
        self.put = self._held.put

    def end(self, about: Mapping[str, str]) -> None:
        self._source.write(self._held.state(), self._folder, about)
        self._held.close()


def _metadata(path: Path) -> Any:
    import orbax.checkpoint as ocp
    from etils import epath

    found = ocp.PyTreeCheckpointHandler().metadata(epath.Path(path.absolute()))
    return getattr(found, "tree", found)


def _restored(path: Path, tree: Any) -> Any:
    """The tree with arrays of NumPy, without what is for training alone."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp
    from etils import epath

    wanted = tree
    if isinstance(tree, Mapping):
        wanted = {key: inner for key, inner in tree.items() if not is_for_training(key, inner)}
    kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    some: dict[str, Any] = {"item": wanted, "transforms": {}} if wanted is not tree else {}
    args = ocp.args.PyTreeRestore(restore_args=kinds, **some)
    return ocp.PyTreeCheckpointHandler().restore(epath.Path(path.absolute()), args=args)


def _as_arrays(tree: Any) -> Any:
    """A tree of metadata with `Array`s, and with maps for lists."""
    if isinstance(tree, Mapping):
        return {str(key): _as_arrays(inner) for key, inner in tree.items()}
    if isinstance(tree, list | tuple):
        return {str(number): _as_arrays(inner) for number, inner in enumerate(tree)}
    if getattr(tree, "dtype", None) is None:
        return None
    dtype = getattr(torch, str(tree.dtype), None)
    shape = getattr(tree, "shape", None) or ()
    return Array(tuple(shape), dtype if isinstance(dtype, torch.dtype) else None, ())


def _at(tree: Any, place: Place) -> Any:
    for key in place:
        tree = tree[int(key)] if isinstance(tree, list | tuple) else tree[key]
    return tree


def _array_of(tensor: Tensor, like: Any) -> Any:
    """A tensor as an array of NumPy, in the type of `like` where both are of as many bytes."""
    import numpy as np

    data = tensor.contiguous()
    dtype = (
        like.dtype if data.element_size() == like.dtype.itemsize else np.dtype(str(data.dtype).removeprefix("torch."))
    )
    return np.frombuffer(bytes(bytes_of(data)), dtype).reshape(like.shape)
