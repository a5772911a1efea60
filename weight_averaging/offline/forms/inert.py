"""Files of torch.save read without a class or function of theirs: whatever is no tensor or plain value is a stand-in.

Nothing that a file names is imported or called. So whole modules and the states of DeepSpeed are read without their
libraries, and without trust in their classes.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weight_averaging.averages import SnapshotError

_MOST_MODULES = 100_000  # of which a small pickle can make many more
_HEADER = 30  # bytes of a local header in a zip, before its name


class StandIn:
    """What a class of the file would have made: its name, what it was called with, and what state it was given."""

    kind = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> "StandIn":
        self = super().__new__(cls)
        self.args, self.state, self.items = args, {}, []
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args: tuple[Any, ...]
        self.state: Any
        self.items: list[Any]

    def __call__(self, *args: Any, **kwargs: Any) -> "StandIn":
        return StandIn(*args)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, value: Any) -> None:
        self.items.append(value)

    add = append

    def extend(self, values: Any) -> None:
        self.items += values


class InertFile:
    """A file of torch.save since torch 1.6, mapped.

    Attributes:
        contents: what was saved, with stand-ins.
        storages: bytes by the number of their record.
    Raises:
        SnapshotError: it is no such file, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.storages: dict[str, torch.UntypedStorage] = {}
        try:
            self._open(path)
        except (zipfile.BadZipFile, pickle.UnpicklingError, NotImplementedError, EOFError) as error:
            raise SnapshotError(f"{path} is damaged: {' '.join(str(error).split())[:120]}") from None

    def _open(self, path: Path) -> None:
        with zipfile.ZipFile(path) as file, open(path, "rb") as raw:
            infos = {info.filename.partition("/")[2]: info for info in file.infolist()}
            if any(infos[key].compress_type != zipfile.ZIP_STORED for key in infos) or "data.pkl" not in infos:
                raise SnapshotError(f"{path} is no file of torch.save")
            if "byteorder" in infos and file.read(infos["byteorder"]) != b"little":
                raise SnapshotError(f"{path} was written by a machine of another byte order")
            whole = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
            for key, info in infos.items():
                if key.startswith("data/"):
                    raw.seek(info.header_offset)
                    header = raw.read(_HEADER)
                    lengths = [int.from_bytes(header[at : at + 2], "little") for at in (26, 28)]
                    start = info.header_offset + _HEADER + sum(lengths)
                    if start + info.file_size > whole.nbytes():
                        raise SnapshotError(f"{path} is damaged: {key} ends beyond it")
                    self.storages[key.removeprefix("data/")] = whole[start : start + info.file_size]
            with file.open(infos["data.pkl"]) as pickled:
                self.contents: Any = _unpickler(pickled, self.storages).load()

    def key_of(self, tensor: Tensor) -> str:
        """The number of the record that has a tensor's bytes."""
        place = tensor.untyped_storage().data_ptr()
        return next(key for key, storage in self.storages.items() if storage.nbytes() and storage.data_ptr() == place)


def _unpickler(file: Any, storages: Mapping[str, torch.UntypedStorage]) -> pickle.Unpickler:
    # Made anew for each file: a pickle can give attributes to the functions that it gets.
    def tensor_of(storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
        dtype, data = storage
        return torch.empty(0, dtype=dtype).set_(data, offset, tuple(size), tuple(stride))

    def parameter_of(data: Any, *rest: Any) -> Any:
        return data

    def with_attributes(made_by: Any, kind: Any, args: Any, *rest: Any) -> Any:
        plain = getattr(kind, "kind", "") in ("torch.Tensor", "torch.nn.parameter.Parameter")
        return made_by(*args) if plain and made_by in (tensor_of, parameter_of) else StandIn(made_by, kind, args, *rest)

    known: dict[tuple[str, str], Any] = {
        ("torch._tensor", "_rebuild_from_type_v2"): with_attributes,
        ("torch._utils", "_rebuild_tensor_v2"): tensor_of,
        ("torch._utils", "_rebuild_parameter"): parameter_of,
        ("torch._utils", "_rebuild_parameter_with_state"): parameter_of,
        ("collections", "OrderedDict"): OrderedDict,
        ("torch", "Size"): torch.Size,
        **{(module, "set"): set for module in ("builtins", "__builtin__")},
    }

    class Inert(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) in known:
                return known[module, name]
            if module in ("torch", "torch.storage") and name.endswith("Storage"):
                return _dtype_of(name)
            if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
                return getattr(torch, name)
            known[module, name] = type("OfFile", (StandIn,), {"kind": f"{module}.{name}"})
            return known[module, name]

        def persistent_load(self, saved: Any) -> Any:
            kind, dtype, key, *_ = saved
            if kind != "storage" or not isinstance(dtype, torch.dtype):
                raise pickle.UnpicklingError("it has a storage of an unknown type")
            return dtype, storages[key]

    return Inert(file)


def _dtype_of(storage: str) -> torch.dtype:
    names = {"Half": "float16", "Float": "float32", "Double": "float64", "BFloat16": "bfloat16", "Char": "int8",
             "Byte": "uint8", "Short": "int16", "Int": "int32", "Long": "int64", "Bool": "bool",
             "ComplexFloat": "complex64", "ComplexDouble": "complex128", "Untyped": "uint8"}  # fmt: skip
    found: torch.dtype = getattr(torch, names[storage.removesuffix("Storage")])
    return found


def state_of_module(module: Any) -> dict[str, Any]:
    """The state dict of a whole module; empty if it is none.

    As torch.nn.Module.state_dict has it, without buffers that are not persistent. Modules that are there twice are
    named twice, and a module that holds itself once.
    """
    found: dict[str, Any] = {}
    left: list[tuple[str, Any, tuple[int, ...]]] = [("", module, ())]
    for _ in range(_MOST_MODULES):
        if not left:
            return found
        prefix, one, above = left.pop()
        if not is_module(one) or id(one) in above:
            continue
        inside = one.state
        passing = inside.get("_non_persistent_buffers_set") or ()
        for kind in ("_parameters", "_buffers"):
            for name, value in inside[kind].items():
                if isinstance(value, Tensor) and not (kind == "_buffers" and name in passing):
                    found[f"{prefix}{name}"] = value
        left += [(f"{prefix}{name}.", inner, (*above, id(one))) for name, inner in inside["_modules"].items()][::-1]
    raise SnapshotError(f"it has more than {_MOST_MODULES} modules")


def is_module(value: Any) -> bool:
    """Whether it stands in for a torch.nn.Module."""
    inside = value.state if isinstance(value, StandIn) else None
    keys = ("_parameters", "_buffers", "_modules")
    return isinstance(inside, Mapping) and all(isinstance(inside.get(key), Mapping) for key in keys)
