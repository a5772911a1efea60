"""Folders of torch.distributed.checkpoint: one model in the files of many processes, read without any of those."""

import dataclasses
import functools
import json
import pickle
import shutil
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms.contents import TRAINING
from weight_averaging.offline.forms.contents.learning_rates import learning_rate_of_distributed
from weight_averaging.offline.forms.hugging_face import read_json
from weight_averaging.offline.forms.source import WholeFolder, joined
from weight_averaging.offline.forms.trainers import MODEL_KEYS
from weight_averaging.offline.layouts import Layout, nbytes
from weight_averaging.tensor_names import clean_names

# What the folder's `.metadata`, a pickle, may be made of; everything else is refused.
_METADATA = "torch.distributed.checkpoint.metadata"
_ALLOWED = {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"), ("torch", "Size"), ("torch", "device"),
    ("torch.serialization", "_get_layout"), ("collections", "OrderedDict"), ("builtins", "set"),
    ("pathlib", "Path"), ("pathlib", "PosixPath"), ("pathlib", "PurePosixPath"),
    # The plans that Megatron-core, and NeMo with it, leave there: plain data.
    *(("torch.distributed.checkpoint.planner", name) for name in (
        "SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData", "SerializationFormat",
    )),
}  # fmt: skip


ABOUT = "weight_averaging.json"  # in a folder that holds an average, about that

# What the states of optimizers are made of, also where they are flattened into names.
_OF_OPTIMIZERS = {
    "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "param_groups", "square_avg",
}  # fmt: skip


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "pathlib._local":  # where Python 3.13 has its paths, and no other
            module = "pathlib"
        # A name with dots would reach what the module itself has imported.
        if "." not in name:
            if (module, name) in _ALLOWED:
                return super().find_class(module, name)
            if module == _METADATA:
                found = super().find_class(module, name)
                if isinstance(found, type) and found.__module__ == module:
                    return found
            if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
                return getattr(torch, name)
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")


class ShardedFolder(WholeFolder):
    """The model in a checkpoint folder.

    Raises:
        SnapshotError: the folder is damaged, its metadata would run code, or there is no model in it. So it is where
            an averager had its average in the model when the folder was written.
    """

    form = "folder of torch.distributed.checkpoint"
    loading = 'torch.distributed.checkpoint.load(STATE, checkpoint_id="{path}")'

    def __init__(self, path: Path, keys: Sequence[str] = ()) -> None:
        super().__init__(path)
        try:
            with open(path / ".metadata", "rb") as file:
                self._metadata = _Restricted(file).load()
            entries = self._metadata.state_dict_metadata
            places = self._metadata.planner_data or {key: (key,) for key in entries}
        except pickle.UnpicklingError as error:
            if str(error).startswith("GLOBAL"):
                raise SnapshotError(
                    f"{path / '.metadata'} is refused: unpickling it would call {str(error)[7:]}, which may run code"
                ) from None
            raise SnapshotError(f"{path / '.metadata'} is damaged: {error}") from None
        except Exception as error:  # what pickle raises depends on where the damage is
            raise SnapshotError(f"{path / '.metadata'} is damaged: {error}") from None
        self._places: dict[str, tuple[Any, ...]] = dict(places)
        if (path / ABOUT).is_file():
            self.average = str(read_json(path / ABOUT).get("average", ""))
        known = set(places.values())  # raw weights aside are a list, in the state of an averager
        if any(place[-2:] == ("raw", 0) and (*place[:-2], "averager") in known for place in known):
            raise SnapshotError(f"{path} was written while an averager had its average in the model: swap it out first")
        tensors = {place: key for key, place in places.items() if hasattr(entries[key], "size")}
        models = _models(tensors)
        if keys:
            models = {key: _below(path, tensors, key) for key in keys}
        if not models:
            tops = sorted({str(place[0]) for place in places.values()})
            raise SnapshotError(f"{path} holds no model; its keys are {', '.join(tops[:8])}")
        # From the name here to that in the checkpoint, where nested dicts are joined by dots.
        self._keys: dict[str, str] = {}
        for number, (key, names) in enumerate(models.items()):
            found = {joined(key, name) if number else name: tensors[place] for name, place in names.items()}
            layout = {name: _kind(path, own, entries[own]) for name, own in found.items()}
            if number:
                self.others |= layout
            else:
                self.layout = layout
            self._keys |= found

    def contents(self, folder: Path, layout: Layout, most: int | None) -> "_Contents":
        return _Contents(folder, layout, {name: self._place(name) for name in layout}, self._beside(), most)

    def _place(self, name: str) -> tuple[str, ...]:
        """Where a tensor was in the checkpoint, lists being dicts; by its name without what wrappers add too."""
        if name in self._keys:
            return tuple(map(str, self._places[self._keys[name]]))
        saved = self._by_plain_name[name]
        place = self._place(saved)
        outer = ".".join(place).removesuffix(saved).rstrip(".")
        return (outer, name) if outer else (name,)

    @functools.cached_property
    def _by_plain_name(self) -> dict[str, str]:
        return dict(zip(clean_names(list(self.layout)), self.layout))

    def _beside(self) -> list[Path]:
        """What libraries have there too: Megatron-core's `metadata.json` and `common.pt`, Lightning's `meta.pt`."""
        kept = [path for path in self.path.iterdir() if path.is_file() and not path.name.startswith(".")]
        return [path for path in kept if path.suffix != ".distcp" and path.name != ABOUT]

    def left_out(self, names: Collection[str]) -> list[str]:
        saved = [name if name in self._keys else self._by_plain_name.get(name) for name in names]
        there = {self._keys[name] for name in saved if name is not None}
        return sorted({str(place[0]) for key, place in self._places.items() if key not in there} - {
            str(self._places[key][0]) for key in there
        })  # fmt: skip

    def learning_rate(self) -> float | None:
        return learning_rate_of_distributed(self.path, self._metadata.storage_data)

    def read(self, names: list[str]) -> dict[str, Tensor]:
        """The tensors of these names, put together from their parts."""
        import torch.distributed.checkpoint as dcp  # slow to import, and not in every build of torch
        from torch.distributed.checkpoint.api import CheckpointException

        class Reader(dcp.FileSystemReader):
            def read_metadata(_, *args: Any, **kwargs: Any) -> Any:
                return self._metadata  # as read above: another version of Python may have written it

        kinds = self.layout | self.others
        target: dict[str, Any] = {self._keys[name]: torch.empty(kinds[name][0], dtype=kinds[name][1]) for name in names}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that there is no process group
                dcp.load(target, storage_reader=Reader(self.path))
        except (Exception, CheckpointException) as error:  # which is no Exception
            causes = error.failures.values() if isinstance(error, CheckpointException) else [(error,)]
            cause = next(iter(causes))[0]
            line = " ".join(str(cause).split())[:120] or type(cause).__name__
            raise SnapshotError(f"{self.path} is damaged or truncated: {line}") from None
        return {name: target[self._keys[name]] for name in names}


class _Contents:
    """A checkpoint that is written file by file, as ranks would write it, one after the other.

    Args:
        places: of the tensors of `layout`, the keys that lead to each in nested dicts.
        beside: files to copy.
        most: bytes of a file, beyond a tensor that is larger, and so of what is held; None for no bound.
    """

    def __init__(
        self, folder: Path, layout: Layout, places: Mapping[str, Sequence[str]], beside: list[Path], most: int | None
    ) -> None:
        import torch.distributed.checkpoint as dcp  # slow to import, and not in every build of torch

        self._folder, self._layout, self._beside = folder, layout, beside
        self._held: dict[str, Tensor] = {}
        self._left = {name: torch.Size(shape).numel() for name, (shape, _) in layout.items()}  # elements
        keys = {name: ".".join(place) for name, place in places.items()}
        names = {key: name for name, key in keys.items()}
        tree: dict[str, Any] = {}
        for name, (shape, dtype) in layout.items():
            inner = tree
            for part in places[name][:-1]:
                inner = inner.setdefault(part, {})
            inner[places[name][-1]] = torch.empty(shape, dtype=dtype, device="meta")

        class Planner(dcp.DefaultSavePlanner):
            def lookup_object(_, index: Any) -> Tensor:
                return self._held[names[index.fqn]]

        self._planner = Planner()
        self._planner.set_up_planner(tree, is_coordinator=True)
        whole = self._planner.create_local_plan()
        items = {names[item.index.fqn]: item for item in whole.items}
        self._files = _neighbours(layout, most)
        self._file_of = {name: number for number, file in enumerate(self._files) for name in file}
        self._missing = [len(file) for file in self._files]
        plans = [dataclasses.replace(whole, items=[items[name] for name in file]) for file in self._files]
        plans, self._metadata = self._planner.create_global_plan(plans)
        self._writer = dcp.FileSystemWriter(folder)
        self._writer.set_up_storage_writer(True)
        self._plans = self._writer.prepare_global_plan([self._writer.prepare_local_plan(plan) for plan in plans])
        self._written: list[Any] = []

    def put(self, name: str, start: int, part: Tensor) -> None:
        shape, dtype = self._layout[name]
        if part.shape == shape:
            self._held[name] = part.detach().contiguous()
            self._left[name] = 0
        else:
            if name not in self._held:
                self._held[name] = torch.empty(shape, dtype=dtype)
            self._held[name].view(-1)[start : start + part.numel()].copy_(part.reshape(-1))
            self._left[name] -= part.numel()
        if self._left[name] > 0:
            return
        number = self._file_of[name]
        self._missing[number] -= 1
        if not self._missing[number]:
            self._written.append(self._writer.write_data(self._plans[number], self._planner).wait())
            for own in self._files[number]:
                del self._held[own]

    def end(self, about: Mapping[str, str]) -> None:
        self._writer.finish(self._metadata, self._written)
        for file in self._beside:
            shutil.copyfile(file, self._folder / file.name)
        (self._folder / ABOUT).write_text(json.dumps(dict(about)) + "\n")


def _neighbours(layout: Layout, most: int | None) -> list[list[str]]:
    """The names in lists, of tensors of `most` bytes together, or one that is larger."""
    found: list[list[str]] = []
    left = 0
    for name, kind in layout.items():
        size = nbytes({name: kind})
        if not found or (most is not None and size > left):
            found.append([])
            left = most or 0
        found[-1].append(name)
        left -= size
    return found


def _kind(path: Path, key: str, entry: Any) -> tuple[tuple[int, ...], torch.dtype]:
    try:
        return tuple(entry.size), entry.properties.dtype
    except AttributeError:
        raise SnapshotError(f"{path / '.metadata'} is damaged: it has no type for {key}") from None


def _below(path: Path, tensors: Collection[tuple[Any, ...]], key: str) -> dict[str, tuple[Any, ...]]:
    """The places by name of the tensors at a key, dots leading further in."""
    found = {}
    for place in tensors:
        name = ".".join(map(str, place))
        if name.startswith(key + "."):
            found[name.removeprefix(key + ".")] = place
    if not found:
        tops = sorted({str(place[0]) for place in tensors})
        raise SnapshotError(f"{path} has no tensors at --key={key}; its keys are {', '.join(tops[:8])}")
    return found


def _models(tensors: Collection[tuple[Any, ...]]) -> dict[str, dict[str, tuple[Any, ...]]]:
    """The models among the tensors at these places, the main one first: by key the places by name.

    The model is under one of MODEL_KEYS, at the top or one level below (`app` of PyTorch's tutorial). Where there is
    none it is at the top itself (torchtitan). What is for training alone is no model, under whatever key.
    """
    kept = [place for place in tensors if not _is_training(place)]
    found: dict[str, dict[str, tuple[Any, ...]]] = {}
    for depth in (0, 1):
        tops = dict.fromkeys(place[: depth + 1] for place in kept if len(place) > depth + 1)
        if main := next((top for key in MODEL_KEYS for top in tops if top[-1] == key), None):
            for place in kept:
                top = place[: depth + 1] if len(place) > depth + 1 and place[:depth] == main[:depth] else place[:1]
                name = ".".join(map(str, place[len(top) :])) or str(place[-1])
                found.setdefault(".".join(map(str, top)), {})[name] = place
            key = ".".join(map(str, main))
            return {key: found.pop(key), **found}
    return {"": {".".join(map(str, place)): place for place in kept}} if kept else {}


def _is_training(place: tuple[Any, ...]) -> bool:
    """Whether a place belongs to an optimizer or the like, and not to a model."""
    for part in place[:-1]:
        if part in MODEL_KEYS:
            return False
        if part in TRAINING:
            return True
    first, *words = ".".join(map(str, place)).split(".")
    return (first in ("optim", "optimizer", "optimizers") and bool(words)) or not _OF_OPTIMIZERS.isdisjoint(words)
