"""Files with whole modules in them (`torch.save(model)`), as Ultralytics writes its `epoch3.pt` and `last.pt`.

Their classes are neither needed nor run. An average is the latest file with other bytes where the averaged weights
are: all else in it stays as it is, the optimizer too.
"""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms.inert import InertFile, is_module, state_of_module
from weight_averaging.offline.forms.records import ABOUT, Records, add_about
from weight_averaging.offline.forms.source import WholeFile, joined
from weight_averaging.offline.forms.trainers import MODEL_KEYS, count, counters_of
from weight_averaging.offline.layouts import Layout, layout_of
from weight_averaging.offline.safetensors_files import bytes_of

_ALIGNED = 64  # bytes; where torch.save lets records begin
_HEADER = 30


def with_modules(path: Path) -> InertFile | None:
    """The file, if it holds a whole module; else None."""
    if not zipfile.is_zipfile(path):
        return None
    file = InertFile(path)
    return file if _modules(file.contents) else None


def _modules(contents: Any) -> dict[str, Any]:
    """Modules by key, the main one first; the contents itself, without a key, if it is one."""
    if is_module(contents):
        return {"": contents}
    if not isinstance(contents, Mapping):
        return {}
    found = {str(key): value for key, value in contents.items() if is_module(value) and state_of_module(value)}
    main = next((key for key in (*MODEL_KEYS, "ema") if key in found), None)
    return found if main is None else {main: found.pop(main), **found}


class ModulesSource(WholeFile):
    """One file.

    Raises:
        SnapshotError: there is no module at one of `keys`, or it holds what cannot be averaged.
    """

    own_names = True

    def __init__(self, path: Path, file: InertFile, keys: Sequence[str] = ()) -> None:
        super().__init__(path)
        self._file, self._records = file, Records(path)
        count_of = len(file.storages)
        if all(str(number) in file.storages for number in range(count_of)):
            self._records.place([file.storages[str(number)] for number in range(count_of)])
        modules = _modules(file.contents)
        for key in keys:
            if key not in modules:
                raise SnapshotError(f"{path} has no module at --key={key}; it has some at {', '.join(modules)}")
        chosen = list(keys) or list(modules)
        self._tensors: dict[str, Tensor] = {}
        for number, key in enumerate(chosen):
            state = {
                joined(key, name) if number else name: value for name, value in state_of_module(modules[key]).items()
            }
            layout: Layout = layout_of(state)
            self._tensors |= state
            if number:
                self.others |= layout
            else:
                self.layout = layout
        ultralytics = isinstance(file.contents, Mapping) and "train_args" in file.contents
        place = f'["{chosen[0]}"]' if chosen[0] else ""
        self.form = "file of Ultralytics" if ultralytics else "file with a whole module"
        self.loading = 'YOLO("{path}")' if ultralytics else f'torch.load("{{path}}", weights_only=False){place}'
        self.counters = counters_of(file.contents) if isinstance(file.contents, Mapping) else {}
        self.average = str(self._records.about.get("average", ""))
        at = f" at {chosen[0]}" if chosen[0] else ""
        self.note = (
            f"averaged are the weights of the whole module{at}; an average is the latest file with these in it, and "
            "keeps all else, an optimizer too"
        )
        self.mapped = all(tensor.is_contiguous() for tensor in self._tensors.values())

    def counter(self, key: str) -> int | None:
        value = self._file.contents
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return count(value)

    def read(self, names: list[str]) -> dict[str, Tensor]:
        return {name: self._tensors[name] for name in names}

    def checksum(self, name: str) -> int | None:
        return self._records.checksum(self._tensors[name])

    def fits(self, path: Path) -> bool:
        return path.suffix == self.path.suffix

    def check(self, layout: Layout) -> None:
        for name, (_, dtype) in layout.items():
            if dtype != self._tensors[name].dtype:
                raise SnapshotError(
                    f"{self.path} holds a whole module, whose file cannot take {name} in another type: leave out "
                    "--float32, or name a .safetensors"
                )

    def write(self, state: Mapping[str, Tensor], file: IO[bytes], about: Mapping[str, str]) -> None:
        averaged: dict[str, list[str]] = {}  # names by the record in which they are
        for name in state:
            if (saved := self._tensors[name]).numel():
                averaged.setdefault(f"data/{self._file.key_of(saved)}", []).append(name)
        with zipfile.ZipFile(self.path) as old, zipfile.ZipFile(file, "w") as new:
            for info in old.infolist():
                record = info.filename.partition("/")[2]
                if record == ABOUT:
                    continue
                copy = zipfile.ZipInfo(info.filename)
                at = file.tell() + _HEADER + len(info.filename.encode()) + 4
                padding = -at % _ALIGNED
                copy.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
                new.writestr(copy, self._record(averaged[record], state) if record in averaged else old.read(info))
        add_about(file, about)

    def _record(self, names: list[str], state: Mapping[str, Tensor]) -> bytes:
        """The bytes of a storage with these tensors in it, and what else it has."""
        storage = self._file.storages[self._file.key_of(self._tensors[names[0]])].clone()
        for name in names:
            saved = self._tensors[name]
            place = torch.empty(0, dtype=saved.dtype)
            place.set_(storage, saved.storage_offset(), saved.size(), saved.stride()).copy_(state[name])
        return bytes(bytes_of(torch.empty(0, dtype=torch.uint8).set_(storage)))
