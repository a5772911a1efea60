"""Snapshots in a folder, whoever wrote them: which steps there are, and the weights of each.

One entry of the folder is one snapshot:

- `*.pt`, `*.pth`: a state dict, or a checkpoint that holds one (under `model`, `state_dict`, `model_state_dict`, ...);
- `*.safetensors`;
- `checkpoint_STEP`: the checkpoints of the AlgoPerf harness and of miniperf;
- folders of torch.distributed.checkpoint.

The step is the file's own `global_step`, else the last number in its name. Pickles are read with `weights_only=True`:
one that would run code is refused. torch files and safetensors are mapped, not loaded.

A checkpoint written while an averager of `weight_averaging.torch` had its average in the model (the harness saves right
after an evaluation) holds the average as its weights; the raw ones are in the averager's own state, and those are what
comes out here: `optimizer_state["averager"]["raw"]`, with the batch-norm statistics in `raw_statistics`.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from weight_averaging.averages import SnapshotError
from weight_averaging.names import clean_names
from weight_averaging.offline.forms.distributed import ShardedFolder
from weight_averaging.offline.layouts import Layout, layout_difference, layout_of
from weight_averaging.offline.safetensors_files import LATEST, SafetensorsFile, StoredTensor
from weight_averaging.offline.tracks import BLOCK

# Where checkpoints keep the model's state dict; the first is the official harness's.
MODEL_KEYS = ("model_params", "model_state_dict", "model", "state_dict", "module", "net")
_NAMES = re.compile(r"checkpoint_\d+|.+\.(pt|pth|safetensors)")
_SHARD = re.compile(r"\d+-of-\d+")


class _Source(Protocol):
    @property
    def layout(self) -> Layout: ...

    def read(self, names: list[str]) -> dict[str, Tensor]: ...


class Snapshots:
    """The snapshots of a folder. Every file's names, shapes and types are looked at, its weights are not.

    Raises:
        SnapshotError: there is none, a file is damaged or would run code, a step is unknown or there twice, or the
            files are of different models. Every message names the file.

    Attributes:
        paths: the files by step, ascending.
        layout: shape and type by name, without what wrappers add; the same in all files.
        latest: the names of what averagers leave as training has it, in all files; empty if that is not known.
        nbytes: of one snapshot's weights.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise SnapshotError(f"{folder} is not a folder")
        entries = sorted(path for path in self.folder.iterdir() if _is_snapshot(path))
        if not entries:
            wanted = "checkpoint_STEP, *.pt, *.pth, *.safetensors or folders of torch.distributed.checkpoint"
            raise SnapshotError(f"{folder} holds no snapshot: {wanted}")
        found: dict[int, Path] = {}
        latest: set[str] | None = None
        layouts: dict[Path, Layout] = {}
        for path in entries:
            source = _open(path)
            step = _step_of(path, source)
            if step in found:
                raise SnapshotError(f"{found[step]} and {path} are both of step {step}: remove one")
            found[step] = path
            layouts[path] = dict(zip(_names(source), source.layout.values()))
            latest = _latest(source) if latest is None else latest & _latest(source)
            first = next(iter(layouts))
            if difference := layout_difference(layouts[first], layouts[path]):
                raise SnapshotError(f"{path} does not fit {first}: {difference}")
        self.paths = dict(sorted(found.items()))
        self.layout = layouts[next(iter(layouts))]
        self.latest = latest or set()
        self.nbytes = sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in self.layout.values())

    @property
    def steps(self) -> list[int]:
        return list(self.paths)

    def state(self, step: int, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The weights of one snapshot, or those of these names; read when they are used, where that is possible."""
        source = _open(self.paths[step])
        originals = self._originals(step, source, names)
        tensors = source.read(list(originals.values()))
        return {name: tensors[original] for name, original in originals.items()}

    def _originals(self, step: int, source: _Source, names: Iterable[str] | None) -> dict[str, str]:
        """What the tensors of these names are called in the file."""
        originals = dict(zip(_names(source), source.layout))
        chosen = list(self.layout if names is None else names)
        if lacking := [name for name in chosen if name not in originals]:
            raise SnapshotError(f"{self.paths[step]} has changed: {lacking[0]} is not in it any more")
        return {name: originals[name] for name in chosen}

    def pieces(
        self, steps: Iterable[int], names: list[str] | None = None
    ) -> Iterator[tuple[int, Mapping[str, Tensor | StoredTensor]]]:
        """As `stream`, with the weights of safetensors files to be read piece by piece, which `offline.Plan` does."""
        for step in steps:
            source = _open(self.paths[step])
            if isinstance(source, SafetensorsFile):
                originals = self._originals(step, source, names)
                tensors = source.stored(list(originals.values()), BLOCK)
                yield step, {name: tensors[original] for name, original in originals.items()}
            else:
                yield step, self.state(step, names)

    def stream(self, steps: Iterable[int], names: list[str] | None = None) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """(step, weights) of each of these steps, one at a time."""
        for step in steps:
            yield step, self.state(step, names)


def _names(source: _Source) -> list[str]:
    """Ours are those of the model already, in which `module.` may be a real one."""
    own = isinstance(source, SafetensorsFile) and LATEST in source.metadata
    return list(source.layout) if own else clean_names(list(source.layout))


def _latest(source: _Source) -> set[str]:
    return set(json.loads(source.metadata.get(LATEST, "[]"))) if isinstance(source, SafetensorsFile) else set()


class _TorchFile:
    """A file of torch.save: mapped where its format allows."""

    def __init__(self, path: Path) -> None:
        contents = load_file(path)
        self.global_step = contents.get("global_step") if isinstance(contents, Mapping) else None
        self._state = _state_dict(path, contents)
        self.layout = layout_of(self._state)

    def read(self, names: list[str]) -> dict[str, Tensor]:
        return {name: self._state[name] for name in names}


def _is_snapshot(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    return (path / ".metadata").is_file() if path.is_dir() else bool(_NAMES.fullmatch(path.name))


def _open(path: Path) -> _Source:
    try:
        if path.is_dir():
            return ShardedFolder(path, MODEL_KEYS)
        if path.suffix != ".safetensors":
            return _TorchFile(path)
        if _SHARD.search(path.stem):
            raise SnapshotError(f"{path} is one of several parts of a model: a snapshot must be one file here")
        return SafetensorsFile(path)
    except OSError as error:
        raise SnapshotError(f"{path} cannot be read: {error.strerror or error}") from None


def _step_of(path: Path, source: _Source) -> int:
    step = getattr(source, "global_step", None)
    if isinstance(step, int):
        return step
    numbers = re.findall(r"\d+", path.stem if path.is_file() else path.name)
    if not numbers:
        raise SnapshotError(f"{path}: its step is not known; put it into the name, as in step_1000{path.suffix}")
    return int(numbers[-1])


def load_file(path: Path) -> Any:
    """The contents of a file of torch.save. SnapshotError if it is damaged, is not there or would run code."""
    if not path.is_file():
        raise SnapshotError(f"{path} is not there, or no file")
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap can only be used" not in str(error):
                    raise
                return torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6
    except Exception as error:  # what torch raises for a damaged file depends on where the damage is
        text = " ".join(str(error).split())
        if code := re.search(r"GLOBAL (\S+)", text):
            raise SnapshotError(
                f"{path} is refused: unpickling it would call {code[1]}, which may run code; save the model's "
                "state_dict alone"
            ) from None
        raise SnapshotError(f"{path} is damaged or truncated: {text[:120] or type(error).__name__}") from None


def _numpy_scalars() -> list[Any]:
    """What a numpy number in a checkpoint (a metric, say) is made by; harmless."""
    try:
        import numpy
        from numpy._core.multiarray import scalar
    except ImportError:
        return []
    return [scalar, numpy.dtype, type(numpy.dtype("float64")), type(numpy.dtype("float32")), type(numpy.dtype("int64"))]


def _state_dict(path: Path, contents: Any) -> dict[str, Tensor]:
    if not isinstance(contents, Mapping):
        raise SnapshotError(f"{path} holds no state dict but a {type(contents).__name__}")
    state = next((contents[key] for key in MODEL_KEYS if isinstance(contents.get(key), Mapping)), contents)
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise SnapshotError(f"{path} holds no state dict; its keys are {', '.join(map(str, list(contents)[:8]))}")
    state = dict(state)
    optimizer_state = contents.get("optimizer_state")
    averager = optimizer_state.get("averager") if isinstance(optimizer_state, Mapping) else None
    if isinstance(averager, Mapping) and averager.get("raw") is not None:
        _put_raw(path, state, averager)
    return state


def _put_raw(path: Path, state: dict[str, Tensor], averager: Mapping[str, Any]) -> None:
    """The raw weights in place of the average that was in the model when it was saved."""
    originals = dict(zip(clean_names(list(state)), state))
    raw = {**dict(zip(averager["names"], averager["raw"])), **averager["raw_statistics"]}
    for name, value in raw.items():
        there = state.get(originals.get(name, ""))
        if there is not None and there.is_complex():
            value = torch.view_as_complex(value)
        if there is None or there.shape != value.shape:
            raise SnapshotError(f"{path}: the raw weights aside the average do not fit the model at {name}")
        state[originals[name]] = value
