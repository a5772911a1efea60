"""Folders of torch.distributed.checkpoint: one model in the files of many processes, read without any of those."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms.source import Source
from weight_averaging.offline.forms.trainers import MODEL_KEYS

# What the folder's `.metadata`, a pickle, may be made of; everything else is refused.
_METADATA = "torch.distributed.checkpoint.metadata"
_ALLOWED = {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"), ("torch", "Size"), ("torch", "device"),
    ("torch.serialization", "_get_layout"), ("collections", "OrderedDict"), ("builtins", "set"),
    ("pathlib", "Path"), ("pathlib", "PosixPath"), ("pathlib", "PurePosixPath"),
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


class ShardedFolder(Source):
    """The model in a checkpoint folder.

    Raises:
        SnapshotError: the folder is damaged, its metadata would run code, there is no model in it, or an averager had
            its average in the model when it was written.
    """

    form = "folder of torch.distributed.checkpoint"

    def __init__(self, path: Path) -> None:
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
        except (EOFError, AttributeError, ImportError, TypeError, ValueError) as error:
            raise SnapshotError(f"{path / '.metadata'} is damaged: {error}") from None
        known = set(places.values())  # raw weights aside are a list, in the state of an averager
        if any(place[-2:] == ("raw", 0) and (*place[:-2], "averager") in known for place in known):
            raise SnapshotError(f"{path} was written while an averager had its average in the model: swap it out first")
        tops = {place[0] for place in places.values()}
        top = next((key for key in MODEL_KEYS if key in tops), None)
        # From the name in the model to that in the checkpoint, where nested dicts are joined by dots.
        self._keys = {
            ".".join(map(str, place[1:] if top is not None else place)): key
            for key, place in places.items()
            if (top is None or place[0] == top) and hasattr(entries[key], "size")
        }
        if not self._keys:
            raise SnapshotError(f"{path} holds no model; its keys are {', '.join(sorted(map(str, tops))[:8])}")
        self.layout = {
            name: (tuple(entries[key].size), entries[key].properties.dtype) for name, key in self._keys.items()
        }

    def read(self, names: list[str]) -> dict[str, Tensor]:
        """The tensors of these names, put together from their parts."""
        import torch.distributed.checkpoint as dcp  # slow to import, and not in every build of torch
        from torch.distributed.checkpoint.api import CheckpointException

        class Reader(dcp.FileSystemReader):
            def read_metadata(_, *args: Any, **kwargs: Any) -> Any:
                return self._metadata  # as read above: another version of Python may have written it

        target: dict[str, Any] = {
            self._keys[name]: torch.empty(*self.layout[name][:1], dtype=self.layout[name][1]) for name in names
        }
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
