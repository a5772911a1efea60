"""Files of torch.save, read so that no code runs: tensors, plain values, and classes allowed by name."""

import datetime
import importlib
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch.torch_version import TorchVersion

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms.records import Records
from weight_averaging.offline.forms.strangers import other_format

_INSTEAD = "save the model's state_dict() by torch.save, or as .safetensors"


def load_file(path: Path, allow: Collection[str] = (), records: Records | None = None) -> Any:
    """The contents of a file of torch.save, mapped where its format allows.

    Args:
        allow: classes that the file may be made of, by their full names (`argparse.Namespace`).
        records: of the file, told where each storage is.
    Raises:
        SnapshotError: it is damaged, is not there or would call what is not allowed.
    """
    if not path.is_file():
        raise SnapshotError(f"{path} is not there, or no file")
    if other := other_format(path):
        raise SnapshotError(f"{path} is {other}, which is not read: {_INSTEAD}")
    storages: list[torch.UntypedStorage] = []

    def keep(storage: Any, location: str) -> Any:
        storages.append(storage)
        return storage  # it is on the CPU, wherever it was

    classes = list(map(_class_of, allow))
    allowed = [datetime.timedelta, TorchVersion, *_of_numpy(), *classes, *_methods_of(classes)]
    try:
        with torch.serialization.safe_globals(allowed):
            try:
                contents = torch.load(path, map_location=keep, weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap can only be used" not in str(error):
                    raise
                contents = torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6
    except Exception as error:  # what torch raises for a damaged file depends on where the damage is
        text = " ".join(str(error).split())
        if code := re.search(r"GLOBAL (\S+)", text):
            raise SnapshotError(
                f"{path} is refused: unpickling it would call {code[1]}, which may run code; save the model's "
                f"state_dict alone{_consent(code[1])}"
            ) from None
        raise SnapshotError(f"{path} is damaged or truncated: {text[:120] or type(error).__name__}") from None
    if records is not None:
        records.place(storages)
    return contents


def _class_of(name: str) -> type:
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise SnapshotError(f"--allow-class={name}: {error}; give its full name, as in argparse.Namespace") from None
    if not isinstance(found, type):
        raise SnapshotError(f"--allow-class={name}: that is no class, and is not allowed")
    return found


def _consent(name: str) -> str:
    """How to allow a class; nothing for what is known to be none."""
    module, _, attribute = name.rpartition(".")
    known = getattr(sys.modules.get(module), attribute, type)
    return f", or if you trust that class: --allow-class={name}" if isinstance(known, type) else ""


def _of_numpy() -> list[Any]:
    """What numbers and arrays of numpy (a metric, the state of a random generator) are made by; harmless."""
    try:
        import numpy
        from numpy._core.multiarray import scalar
    except ImportError:
        return []
    made: list[Any] = [
        scalar,
        numpy.ndarray,
        numpy.dtype,
        *{type(numpy.dtype(code)) for code in numpy.typecodes["All"]},
    ]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # of numpy 1 and 2
        made += [_called(f"{module}._reconstruct", _empty_array), _called(f"{module}.scalar", scalar)]
    return made


def _methods_of(classes: Collection[type]) -> list[Any]:
    """What finds a class's own methods, which are kept and not called: mmengine's HistoryBuffer has some."""

    def method_of(owner: type, name: str) -> Any:
        if owner not in classes or not isinstance(name, str) or name.startswith("_"):
            raise TypeError(f"{name} of {owner} is not allowed")
        return vars(owner)[name]

    return [_called(f"{module}.getattr", method_of) for module in ("builtins", "__builtin__")] if classes else []


def _called(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, found by torch under this name."""

    def found(*args: Any) -> Any:
        return function(*args)

    found.__module__, _, found.__name__ = name.rpartition(".")
    found.__qualname__ = found.__name__  # by which newer releases of torch look
    return found


def _empty_array(kind: type, shape: tuple[int, ...], code: object) -> Any:
    """An array that its state is put into; of no elements whatever a file says, for the state brings its own."""
    import numpy

    if kind is not numpy.ndarray:
        raise TypeError(f"{kind} is no numpy.ndarray")
    return numpy.empty(0, numpy.int8)
