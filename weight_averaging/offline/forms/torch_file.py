"""One file of torch.save: a state dict, or a checkpoint that holds one or several."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms.averager_state import put_raw
from weight_averaging.offline.forms.contents import (
    averager_states,
    is_extra,
    is_for_training,
    is_state_dict,
    models_beside,
    with_models,
)
from weight_averaging.offline.forms.contents.learning_rates import learning_rate
from weight_averaging.offline.forms.contents.scores import Score, scores_of
from weight_averaging.offline.forms.pickles import load_file
from weight_averaging.offline.forms.records import Records, add_about
from weight_averaging.offline.forms.source import NoModelError, WholeFile, ending, joined
from weight_averaging.offline.forms.trainers import (
    MODEL_KEYS,
    about,
    count,
    counters_of,
    is_fastais,
    is_mmengines_ema,
    lightnings_average,
)
from weight_averaging.offline.layouts import layout_of
from weight_averaging.tensor_names import clean_names

# Where Lightning's WeightAveraging has the raw weights while it has its average under `state_dict`.
_RAW, _AVERAGING = "current_model_state", "averaging_state"


class TorchSource(WholeFile):
    """Args:
        keys: of the models to average, the main one first, dots leading further in; none: all that are there.

    Attributes:
        extra: entries of the state dict that are extra state, and not averaged.
        averagers: kinds of the averagers whose states are in the file.
    Raises:
        SnapshotError: it is damaged, would run code, or holds no state dict, or one that cannot be averaged.
    """

    def __init__(self, path: Path, allow: Collection[str] = (), keys: Sequence[str] = ()) -> None:
        super().__init__(path)
        self._records = Records(path)
        self._contents = load_file(path, allow, self._records)
        self._key, self._shown, self._saved = _find_model(path, self._contents, keys)
        self._chosen = keys
        self._unchosen: list[Mapping[str, Any]] = []
        about_it = about(path, self._contents, self._key)
        self.form, self.loading = about_it.form, about_it.loading
        self.counters = counters_of(self._contents) if self._key is not None else {}
        self.average = str(self._records.about.get("average", "")) or lightnings_average(self._contents, self._saved)
        if self._saved is not self._shown:
            self.note = f"averaged are the raw weights ({_RAW}), not Lightning's averages of them ({self._key})"
        elif self._key == "state_dict" and is_mmengines_ema(self._contents):
            self.note = (
                "averaged are the EMAs of mmengine's EMAHook (state_dict), and apart from them the raw weights "
                "(ema_state_dict): --key ema_state_dict takes those alone"
            )
        elif self._key is not None and "ds_version" in self._contents:
            self.note = (
                "averaged is the copy that DeepSpeed trains with: where its optimizer holds float32 weights, name the "
                f"folder instead, as {path.parent}"
            )
        self.extra = {name: value for name, value in self._saved.items() if is_extra(name)}
        self._state = {name: value for name, value in self._saved.items() if not is_extra(name)}
        _check(path, self._state)
        self.averagers = [str(state["averager"]) for state in averager_states(self._contents)]
        self._beside = self._find_others()
        beside = {key: {n: v for n, v in model.items() if not is_extra(n)} for key, model in self._beside.items()}
        for tensors in beside.values():
            _check(path, tensors)
        rest = [{name: one for name, one in model.items() if not is_extra(name)} for model in self._unchosen]
        put_raw(path, [self._state, *beside.values(), *rest], self._contents)
        self.layout = layout_of(self._state)
        self._tensors = dict(self._state)
        for key, tensors in beside.items():
            self._tensors |= {joined(key, name): value for name, value in tensors.items()}
        self.others = {name: kind for name, kind in layout_of(self._tensors).items() if name not in self._state}
        # Since torch 1.6 files can be mapped.
        self.mapped = self._records.is_zip and all(tensor.is_contiguous() for tensor in self._tensors.values())

    def _find_others(self) -> dict[str, Mapping[str, Any]]:
        """The models beside, by keys with which no name is there twice."""
        if self._key is None:
            return {}
        found: dict[str, Mapping[str, Any]] = {}
        for key, model in models_beside(self._contents, self._saved):
            if self._chosen and key not in self._chosen:
                self._unchosen.append(model)
                continue
            while key in found or any(name.startswith(joined(key, "")) for name in self._saved):
                key += "_"
            if model is not self._shown:  # an average, where the raw weights are elsewhere
                found[key] = model
        return found

    def learning_rate(self) -> float | None:
        return learning_rate(self._contents)

    def scores(self) -> Mapping[str, Score]:
        return scores_of(self._contents, self.path) if self._key is not None else {}

    def counter(self, key: str) -> int | None:
        return count(_at(self._contents, key))

    def read(self, names: list[str]) -> dict[str, Tensor]:
        return {name: self._tensors[name] for name in names}

    def checksum(self, name: str) -> int | None:
        return self._records.checksum(self._tensors[name])

    def filled(self, state: Mapping[str, Tensor]) -> Any:
        """The checkpoint with these weights instead of its own, without what is for training alone.

        Extra state (`_extra_state`) stays as it is in the file, and so does all else that is no model.

        Args:
            state: of the model, under any names, and of `others`; none of those that are to be left out.
        """
        return self._filled(state)[0]

    def fits(self, path: Path) -> bool:
        return ending(path) == ending(self.path)

    def write(self, state: Mapping[str, Tensor], file: IO[bytes], about: Mapping[str, str]) -> None:
        torch.save(self.filled(state), file)
        add_about(file, about)

    def left_out(self, names: Collection[str]) -> list[str]:
        return self._filled(dict.fromkeys(names))[1]

    def _filled(self, state: Mapping[str, Any]) -> tuple[Any, list[str]]:
        weights = {name: value for name, value in state.items() if name not in self.others}
        plain = dict(zip(self._saved, clean_names(list(self._saved))))
        are_plain = any(name not in self._saved for name in weights)  # as --plain-names has them
        weights |= {plain[name] if are_plain else name: value for name, value in self.extra.items()}
        if self._key is None:
            return weights, []
        if is_fastais(self._contents):
            return weights, ["opt"]
        models: dict[int, Any] = dict.fromkeys(map(id, self._unchosen))
        models[id(self._shown)] = weights
        if self._saved is not self._shown:
            models[id(self._saved)] = None
        for key, model in self._beside.items():
            names = {name: joined(key, name) for name in model}
            there = all(is_extra(name) or own in state for name, own in names.items())
            filled = (
                {name: model[name] if is_extra(name) else state[own] for name, own in names.items()} if there else None
            )
            models[id(model)] = filled
        return with_models(self._contents, models)


def _find_model(
    path: Path, contents: Any, keys: Sequence[str]
) -> tuple[str | None, Mapping[str, Any], Mapping[str, Any]]:
    """The key of the model's state dict (dots lead further in; None: the top), that, and that with its raw weights."""
    if not isinstance(contents, Mapping):
        raise SnapshotError(f"{path} holds no state dict but a {type(contents).__name__}")
    for wanted in keys:
        if not is_state_dict(_at(contents, wanted)):
            there = [key for key, _ in models_beside(contents, {})]
            raise SnapshotError(f"{path} has no state dict at --key={wanted}; it has some at {', '.join(there[:8])}")
    key = keys[0] if keys else _key_of_model(contents)
    state = contents if key is None else _at(contents, key)
    if not any(isinstance(value, Tensor) for value in state.values()):
        shown = ", ".join(map(str, list(contents)[:8]))
        there = [key for key, _ in models_beside(contents, {})] if key is None else []
        hint = f"; name the model by --key={' or --key='.join(there[:8])}" if there else ""
        raise NoModelError(f"{path} holds no state dict; its keys are {shown}{hint}", is_for_training(None, contents))
    if key in MODEL_KEYS and not keys and all(isinstance(contents.get(name), Mapping) for name in (_RAW, _AVERAGING)):
        return key, state, contents[_RAW]
    return key, state, state


def _key_of_model(contents: Mapping[Any, Any]) -> str | None:
    """One of MODEL_KEYS, at the top or one level below: `state.model` of Composer."""
    if key := next((key for key in MODEL_KEYS if isinstance(contents.get(key), Mapping)), None):
        return key
    if not any(isinstance(value, Tensor) for value in contents.values()):
        for top, inner in contents.items():
            if isinstance(inner, Mapping) and isinstance(top, str) and not is_for_training(top, inner):
                for key in MODEL_KEYS:
                    if is_state_dict(inner.get(key)):
                        return f"{top}.{key}"
    return None


def _at(contents: Any, key: str) -> Any:
    """What is at a key, dots leading further in, unless a key has dots itself; None if there is nothing."""
    if not isinstance(contents, Mapping) or key in contents:
        return contents.get(key) if isinstance(contents, Mapping) else None
    first, dot, rest = key.partition(".")
    return _at(contents.get(first), rest) if dot else None


def _check(path: Path, state: Mapping[Any, Any]) -> None:
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            what = f"{name} in it is no tensor but a {type(value).__name__}"
            raise SnapshotError(
                f"{path} holds no state dict: {what if isinstance(name, str) else f'a name in it is {name!r}'}; save "
                "the model's state_dict() under the key 'model'"
            )
        if value.layout != torch.strided or value.is_quantized or value.is_nested or value.device.type == "meta":
            kind = "quantized" if value.is_quantized else str(value.layout).removeprefix("torch.")
            raise SnapshotError(
                f"{path}: {name} is a {'meta' if value.device.type == 'meta' else kind} tensor, which cannot be "
                "averaged: save the model without it, or as a dense one"
            )
