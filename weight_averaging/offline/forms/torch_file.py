"""One file of torch.save: a state dict, or a checkpoint that holds one."""

import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms.averager_state import averager_states, is_averager_state, put_raw
from weight_averaging.offline.forms.pickles import load_file
from weight_averaging.offline.forms.source import Source
from weight_averaging.offline.forms.trainers import MODEL_KEYS, about
from weight_averaging.offline.layouts import layout_of

EXTRA_STATE = "_extra_state"  # what torch.nn.Module.get_extra_state gave, of any type

# Of a checkpoint that is written, all but the training: an average is evaluated, or trained on afresh.
_TRAINING = {
    "amp", "amp_scaler", "averager", "callbacks", "last_optimizer_state", "lr_scheduler", "lr_schedulers", "optimizer",
    "optimizer_state", "optimizer_state_dict", "optimizer_states", "optimizers", "scaler", "scheduler",
    "scheduler_state_dict", "schedulers",
}  # fmt: skip


class TorchSource(Source):
    """Attributes:
        extra: entries of the state dict that are extra state, and not averaged.
        averagers: kinds of the averagers whose states are in the file.
    Raises:
        SnapshotError: it is damaged, would run code, or holds no state dict, or one that cannot be averaged.
    """

    def __init__(self, path: Path, allow: Collection[str] = ()) -> None:
        super().__init__(path)
        self._contents = load_file(path, allow)
        self._key, saved = _find_model(path, self._contents)
        about_it = about(path, self._contents, self._key)
        self.form, self.step, self.epoch, self.loading = about_it
        self.extra = {name: value for name, value in saved.items() if _is_extra(name)}
        self._state = {name: value for name, value in saved.items() if not _is_extra(name)}
        _check(path, self._state)
        self.averagers = [str(state["averager"]) for state in averager_states(self._contents)]
        put_raw(path, self._state, self._contents)
        self.layout = layout_of(self._state)
        is_new = zipfile.is_zipfile(path)  # the format since torch 1.6, which can be mapped
        self.mapped = is_new and all(tensor.is_contiguous() for tensor in self._state.values())

    def read(self, names: list[str]) -> dict[str, Tensor]:
        return {name: self._state[name] for name in names}

    def filled(self, state: Mapping[str, Tensor]) -> Any:
        """The checkpoint with these weights instead of its own, without optimizers and what else is for training.

        Extra state (`_extra_state`) stays as it is in the file.
        """
        weights = {**state, **self.extra}
        if self._key is None:
            return weights
        rest = {key: _without_tensors(value) for key, value in self._contents.items() if key not in _TRAINING}
        kept = {key: value for key, value in rest.items() if value is not _GONE and key != self._key}
        return {**kept, self._key: weights}


def _find_model(path: Path, contents: Any) -> tuple[str | None, Mapping[str, Any]]:
    """The key under which the model's state dict is (None: at the top), and that."""
    if not isinstance(contents, Mapping):
        raise SnapshotError(f"{path} holds no state dict but a {type(contents).__name__}")
    key = next((key for key in MODEL_KEYS if isinstance(contents.get(key), Mapping)), None)
    state = contents if key is None else contents[key]
    if not any(isinstance(value, Tensor) for value in state.values()):
        raise SnapshotError(f"{path} holds no state dict; its keys are {', '.join(map(str, list(contents)[:8]))}")
    return key, state


def _check(path: Path, state: Mapping[str, Any]) -> None:
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise SnapshotError(
                f"{path} holds no state dict: {name} in it is no tensor but a {type(value).__name__}; save the model's "
                "state_dict() under the key 'model'"
            )
        if value.layout != torch.strided or value.is_quantized or value.is_nested or value.device.type == "meta":
            kind = "quantized" if value.is_quantized else str(value.layout).removeprefix("torch.")
            raise SnapshotError(
                f"{path}: {name} is a {'meta' if value.device.type == 'meta' else kind} tensor, which cannot be "
                "averaged: save the model without it, or as a dense one"
            )


def _is_extra(name: str) -> bool:
    return name.rpartition(".")[2] == EXTRA_STATE


class _Gone:
    pass


_GONE = _Gone()


def _without_tensors(value: Any) -> Any:
    """Plain values as they are; of a dict what is left without tensors and states of averagers; else `_GONE`."""
    if isinstance(value, Tensor) or is_averager_state(value):
        return _GONE
    if isinstance(value, Mapping):
        kept = {key: _without_tensors(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item is not _GONE}
    if isinstance(value, list | tuple) and any(_without_tensors(item) is _GONE for item in value):
        return _GONE
    return value
