"""Folders of Hugging Face's `save_pretrained` and Trainer: weights in one file or in parts, config and tokenizer.

`checkpoint-STEP/` of a Trainer has the step in `trainer_state.json`. Weights are `model.safetensors`, or parts of it
that `model.safetensors.index.json` names tensor by tensor; `pytorch_model.bin` likewise; `adapter_model` of PEFT,
`diffusion_pytorch_model` of diffusers.
"""

import contextlib
import json
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms.safetensors_file import SafetensorsSource
from weight_averaging.offline.forms.source import Source
from weight_averaging.offline.forms.torch_file import TorchSource
from weight_averaging.offline.layouts import Layout
from weight_averaging.offline.safetensors_files import SafetensorsFile

_STEMS = ("model", "pytorch_model", "adapter_model", "diffusion_pytorch_model")
_INDEX = ".index.json"
# For the training that goes on from there, and not part of the model.
_TRAINING = {"trainer_state.json", "training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt"}


def is_folder(path: Path) -> bool:
    return _weights(path) is not None


def _weights(path: Path) -> str | None:
    """The file that has the weights, or the index of those that have."""
    for suffix in (".safetensors", ".bin"):
        for stem in _STEMS:
            for name in (f"{stem}{suffix}", f"{stem}{suffix}{_INDEX}"):
                if (path / name).is_file():
                    return name
    return None


class HuggingFaceSource(Source):
    """A folder with a model.

    Attributes:
        index: the contents of the index file; None where there is one file of weights.
        files: the file that each tensor is in, by name.
    Raises:
        SnapshotError: a part is missing or damaged, or a tensor is not where the index says.
    """

    def __init__(self, path: Path, allow: Collection[str] = ()) -> None:
        super().__init__(path)
        name = _weights(path)
        assert name is not None
        self.index: dict[str, Any] | None = None
        if name.endswith(_INDEX):
            self.index = _read(path / name)
            try:
                self.files: dict[str, str] = dict(self.index["weight_map"])
            except (KeyError, TypeError, ValueError):
                raise SnapshotError(f"{path / name} is damaged: it has no weight_map") from None
        self._index_name = name
        parts = [name] if self.index is None else sorted(set(self.files.values()))
        self.form = f"Hugging Face folder ({len(parts)} {Path(parts[0]).suffix} of weights)"
        self._parts: dict[str, _Part | TorchSource] = {}
        for part in parts:
            if Path(part).name != part or not (path / part).is_file():
                raise SnapshotError(f"{path}: {part}, which {name} names, is not there")
            self._parts[part] = _Part(path / part) if part.endswith(".safetensors") else TorchSource(path / part, allow)
        if self.index is None:
            self.files = dict.fromkeys(self._parts[name].layout, name)
        self.mapped = all(part.mapped for part in self._parts.values())
        self.layout: Layout = {}
        for part, source in self._parts.items():
            self.layout |= {tensor: kind for tensor, kind in source.layout.items() if self.files.get(tensor) == part}
        if lacking := [tensor for tensor in self.files if tensor not in self.layout]:
            raise SnapshotError(f"{path}: {lacking[0]} is not in {self.files[lacking[0]]}, where {name} has it")
        state = path / "trainer_state.json"
        step = _read(state).get("global_step") if state.is_file() else None
        self.step = step if isinstance(step, int) else None

    def read(self, names: list[str]) -> dict[str, Tensor]:
        found = {}
        for part, own in self._by_part(names):
            found.update(part.read(own))
        return {name: found[name] for name in names}

    def _by_part(self, names: list[str]) -> Iterator[tuple[Source, list[str]]]:
        for part, source in self._parts.items():
            if own := [name for name in names if self.files[name] == part]:
                yield source, own

    @property
    def loading(self) -> str:
        """What loads such a folder."""
        config = self.path / "config.json"
        architectures = _read(config).get("architectures") if config.is_file() else None
        name = architectures[0] if isinstance(architectures, list) and architectures else "AutoModel"
        return f'transformers.{name}.from_pretrained("{{path}}")'

    def write_rest(self, folder: Path, layout: Layout, float32: bool) -> None:
        """Write all but the weights into `folder`: config, tokenizer, code, and the index for weights of `layout`."""
        weights = {*self._parts, self._index_name}
        for path in self.path.iterdir():
            others = path.suffix in (".safetensors", ".bin", ".pt", ".pth") or path.name.endswith(_INDEX)
            if path.is_file() and path.name not in weights | _TRAINING and not others:
                shutil.copyfile(path, folder / path.name)
        if float32 and (folder / "config.json").is_file():  # or from_pretrained would round them again
            config = _read(folder / "config.json")
            config |= {key: "float32" for key in ("dtype", "torch_dtype") if key in config}
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        if self.index is not None:
            size = sum(_numel(shape) * dtype.itemsize for shape, dtype in layout.values())
            about = {**self.index.get("metadata", {}), "total_size": size}
            (folder / self._index_name).write_text(json.dumps({**self.index, "metadata": about}, indent=2) + "\n")


class _Part(SafetensorsSource):
    """One of the files, which may be called after its place among them."""

    def __init__(self, path: Path) -> None:
        Source.__init__(self, path)
        self._file = SafetensorsFile(path)
        self.layout, self.mapped = self._file.layout, self._file.aligned


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def _read(path: Path) -> dict[str, Any]:
    with contextlib.suppress(ValueError, OSError):
        contents = json.loads(path.read_text())
        if isinstance(contents, dict):
            return contents
    raise SnapshotError(f"{path} is damaged: it is no JSON object")
