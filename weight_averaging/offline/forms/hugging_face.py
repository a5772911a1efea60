"""Folders of Hugging Face's `save_pretrained` and Trainer: weights in one file or in parts, config and tokenizer.

`checkpoint-STEP/` of a Trainer has the step in `trainer_state.json`. Weights are `model.safetensors`, or parts of it
that `model.safetensors.index.json` names tensor by tensor; `pytorch_model.bin` likewise; `adapter_model` of PEFT,
`diffusion_pytorch_model` of diffusers. Other files of weights in it are models beside: `model_1.safetensors` of
accelerate, `2_Dense/model.safetensors` of sentence-transformers. Diffusers has its models in folders of their own
below (`unet`, `unet_ema`), and a variant of one in the name: `diffusion_pytorch_model.fp16.safetensors`.
Folders that are like those, with files of other names: `folders_by_name`.
"""

import contextlib
import functools
import json
import re
import shutil
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms import folders_by_name
from weight_averaging.offline.forms.contents.learning_rates import learning_rate_of_folder
from weight_averaging.offline.forms.contents.scores import Score, scores_of_log
from weight_averaging.offline.forms.safetensors_file import SafetensorsSource
from weight_averaging.offline.forms.source import Source, joined
from weight_averaging.offline.forms.torch_file import TorchSource
from weight_averaging.offline.forms.trainers import count
from weight_averaging.offline.forms.weights_of_folder import VARIANT, chosen, is_run_in, weights
from weight_averaging.offline.layouts import Layout, nbytes
from weight_averaging.offline.remote import present
from weight_averaging.tensor_names import clean_names

# For the training that goes on from there, and not part of the model.
_TRAINING = re.compile(
    r"(optimizer|scheduler|scaler|rng_state|random_states|sampler|dl_state_dict|custom_checkpoint)(_.*|\d*)\."
    r"(pt|pth|bin|pkl)|training_args\.(bin|json)|trainer_state\.json|events\.out\.tfevents.*|zero_to_fp32\.py|latest"
)
# Models of other frameworks, which would not be averaged: of the latest they would be those of another model.
_FOREIGN = (".h5", ".msgpack", ".onnx", ".gguf", ".ot", ".npz", ".tflite", ".distcp", ".ckpt")


class HuggingFaceSource(Source):
    """A folder with a model, and maybe others beside.

    Attributes:
        index: the contents of the index file; None where there is one file of weights.
        files: the file that each tensor is in, by name; of `others` too.
        not_copied: files and folders that an average is without, with the reason.
    Raises:
        SnapshotError: a part is missing or damaged, or a tensor is not where the index says.
    """

    def __init__(self, path: Path, allow: Collection[str] = (), keys: Sequence[str] = ()) -> None:
        super().__init__(path)
        self._allow = tuple(allow)
        name = chosen(path, keys[0]) if keys else weights(path)
        assert name is not None
        for key in keys[1:]:
            chosen(path, key)
        self._keys = [key.rstrip("/") for key in keys]
        folder = name.rpartition("/")[0]
        self._in = f"{folder}/" if folder else ""
        self.index: dict[str, Any] | None = None
        if name.endswith(".json"):
            self.index = read_json(path / name)
            try:
                in_folder = dict(self.index["weight_map"])
            except (KeyError, TypeError, ValueError):
                raise SnapshotError(f"{path / name} is damaged: it has no weight_map") from None
            if bad := [part for part in in_folder.values() if not isinstance(part, str) or Path(part).name != part]:
                raise SnapshotError(f"{path / name} is damaged: {bad[0]!r} in it is no file")
            self.files = {tensor: self._in + part for tensor, part in in_folder.items()}
        self._main = name
        parts = [name] if self.index is None else sorted(set(self.files.values()))
        self._library = folders_by_name.library_of(path, name)
        self.form = f"{self._library or 'Hugging Face'} folder ({len(parts)} {Path(parts[0]).suffix} of weights)"
        self._parts: dict[str, Source] = {}
        for part in parts:
            if not (path / part).is_file():
                raise SnapshotError(f"{path}: {part}, which {name} names, is not there")
            self._parts[part] = _open(path / part, allow)
        if self.index is None:
            self.files = dict.fromkeys(self._parts[name].layout, name)
        self.layout: Layout = {}
        for part, source in self._parts.items():
            self.layout |= {tensor: kind for tensor, kind in source.layout.items() if self.files.get(tensor) == part}
        if lacking := [tensor for tensor in self.files if tensor not in self.layout]:
            raise SnapshotError(f"{path}: {lacking[0]} is not in {self.files[lacking[0]]}, where {name} has it")
        self._own_name = {tensor: tensor for tensor in self.layout}  # in its file
        self.not_copied: dict[str, str] = {}
        self._copied: list[str] = []
        self._look_beside(allow)
        self.average = next(iter(self._parts.values())).average
        self.mapped = all(part.mapped for part in self._parts.values())
        if (path / "trainer_state.json").is_file() and (step := self.counter("global_step")) is not None:
            self.counters = {"global_step": step}
        elif self._library:
            self.counters = folders_by_name.counters_in(path) or self._parts[name].counters

    def _look_beside(self, allow: Collection[str]) -> None:
        """Find what lies beside the weights: other weights, what is copied, and what is left out."""
        unchosen: set[str] = set()
        kept: list[str] = []
        for file in _files(self.path, self.not_copied):
            name = file.relative_to(self.path).as_posix()
            if name in self._parts or name == self._main:
                continue
            speechbrains = file.suffix == ".ckpt" and folders_by_name.is_speechbrains(self.path)
            if speechbrains and not zipfile.is_zipfile(file):
                self._copied.append(name)
            elif _TRAINING.fullmatch(file.name) and not speechbrains:
                self.not_copied[name] = "for training"
            elif file.suffix in _FOREIGN and not speechbrains:
                self.not_copied[name] = "not averaged"
            elif file.suffix in (".safetensors", ".bin", ".pt", ".pth") or speechbrains:
                if self._keys and not any(f"{name}/".startswith(f"{key}/") for key in self._keys):
                    self.not_copied[name] = "not asked for"
                    unchosen |= {f"{folder}/"} if (folder := name.rpartition("/")[0]) else set()
                    continue
                try:
                    source = _open(file, allow)
                except SnapshotError as error:
                    if file.suffix == ".safetensors" or "damaged" in str(error):
                        raise
                    if speechbrains:  # whose recovery asks for all that was saved
                        kept.append(name)
                    else:
                        self.not_copied[name] = "no weights are found in it"
                    continue
                self._parts[name] = source
                for own, kind in source.layout.items():
                    tensor = joined(name, own)
                    self.others[tensor], self.files[tensor], self._own_name[tensor] = kind, name, own
            else:
                self._copied.append(name)
        self._copied = [name for name in self._copied if not name.startswith(tuple(unchosen))] + kept
        if kept:
            self.note = f"an average keeps {', '.join(kept)} of the latest: SpeechBrain's recovery asks for all parts"

    def scores(self) -> Mapping[str, Score]:
        state = self.path / "trainer_state.json"
        if not state.is_file():
            return next(iter(self._parts.values())).scores()
        return scores_of_log(read_json(state).get("log_history"), self.counter("global_step"))

    def learning_rate(self) -> float | None:
        state = self.path / "trainer_state.json"
        contents = read_json(state) if state.is_file() else {}
        rate = learning_rate_of_folder(self.path, self._allow, contents, count(contents.get("global_step")))
        return self._parts[self._main].learning_rate() if rate is None and self._main in self._parts else rate

    def counter(self, key: str) -> int | None:
        state = self.path / "trainer_state.json"
        if self._library:
            return self.counters.get(key, self._parts[self._main].counter(key))
        return count(read_json(state).get(key)) if state.is_file() else None

    def read(self, names: list[str]) -> dict[str, Tensor]:
        found = {}
        for part, own in self._by_part(names):
            tensors = part.read([self._own_name[name] for name in own])
            found.update({name: tensors[self._own_name[name]] for name in own})
        return {name: found[name] for name in names}

    def checksum(self, name: str) -> int | None:
        return self._parts[self.files[name]].checksum(self._own_name[name])

    def part(self, file: str) -> Source:
        """One of the files of weights."""
        return self._parts[file]

    def left_out(self, names: Collection[str]) -> list[str]:
        return [f"{name} ({reason})" for name, reason in self.not_copied.items()]

    def part_of(self, name: str) -> tuple[str, str]:
        """The file in which a tensor is, and its name there; also by its name without what wrappers add."""
        saved = name if name in self.files else self._by_plain_name[name]
        return self.files[saved], name if name in self.layout or saved != name else self._own_name[name]

    @functools.cached_property
    def _by_plain_name(self) -> dict[str, str]:
        return dict(zip(clean_names(list(self.layout)), self.layout))

    def _by_part(self, names: list[str]) -> Iterator[tuple[Source, list[str]]]:
        by_part: dict[str, list[str]] = {}
        for name in names:
            by_part.setdefault(self.files[name], []).append(name)
        for part, own in by_part.items():
            yield self._parts[part], own

    @property
    def loading(self) -> str:
        """What loads such a folder."""
        if self._library:
            return folders_by_name.loading(self.path, self._main)
        path, folder = '"{path}"', self.path / self._in
        if (self.path / "modules.json").is_file():
            return f"sentence_transformers.SentenceTransformer({path})"
        if (self.path / "adapter_config.json").is_file():
            return f"peft.PeftModel.from_pretrained(base_model, {path})"
        if not (folder / "config.json").is_file():
            return f"accelerate.load_checkpoint_in_model(model, {path})"
        config = read_json(folder / "config.json")
        more = f', subfolder="{self._in[:-1]}"' if self._in else ""
        if variant := VARIANT.fullmatch(Path(self._main).name):
            more += f', variant="{variant[2] or variant[3]}"'
        if isinstance(config.get("_class_name"), str):
            return f"diffusers.{config['_class_name']}.from_pretrained({path}{more})"
        architectures = config.get("architectures")
        name = architectures[0] if isinstance(architectures, list) and architectures else "AutoModel"
        return f"transformers.{name}.from_pretrained({path}{more})"

    def write_rest(self, folder: Path, layout: Layout, float32: bool) -> None:
        """Write all but the weights into `folder`: config, tokenizer, code, and the index for weights of `layout`."""
        for name in self._copied:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(present(self.path / name), folder / name)
        if (folder / "config.json").is_file():
            config = read_json(folder / "config.json")
            wide = {
                key: "float32" for key in ("dtype", "torch_dtype") if float32 or _too_narrow(config.get(key), layout)
            }
            if config.keys() & wide:  # or from_pretrained would round them again
                config |= {key: wide[key] for key in config if key in wide}
                (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        if self.index is not None:
            model = {name: kind for name, kind in layout.items() if name not in self.others}
            metadata = self.index.get("metadata")
            about = {**(metadata if isinstance(metadata, dict) else {}), "total_size": nbytes(model)}
            index = {
                **self.index,
                "metadata": about,
                "weight_map": {name: Path(self.part_of(name)[0]).name for name in model},
            }
            (folder / self._main).write_text(json.dumps(index, indent=2) + "\n")


def _too_narrow(dtype: Any, layout: Layout) -> bool:
    """Whether it is a type of 16 bits, and all weights are float32: of models of unlike types."""
    kinds = {kind for _, kind in layout.values() if kind.is_floating_point}
    return dtype in ("bfloat16", "float16") and kinds == {torch.float32}


def _open(path: Path, allow: Collection[str]) -> Source:
    return _Part(path) if path.suffix == ".safetensors" else TorchSource(present(path), allow)


def _files(folder: Path, left_out: dict[str, str]) -> Iterator[Path]:
    """The files of a folder and those below it; folders that hold something else are told in `left_out`."""
    left = [folder]
    while left:
        for path in sorted(left.pop().iterdir()):
            if path.is_file():
                yield path
            elif path.is_dir() and not path.is_symlink():
                if is_run_in(path) or (path / ".metadata").exists():
                    left_out[path.relative_to(folder).as_posix()] = "not part of the model"
                else:
                    left.append(path)


class _Part(SafetensorsSource):
    """One of the files, which may be called after its place among them."""

    in_parts = True


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of JSON. SnapshotError if there is none."""
    with contextlib.suppress(ValueError, OSError, RecursionError):
        contents = json.loads(path.read_text())
        if isinstance(contents, dict):
            return contents
    raise SnapshotError(f"{path} is damaged: it is no JSON object")
