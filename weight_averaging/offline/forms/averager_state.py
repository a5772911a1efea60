"""The raw weights out of the states of our averagers inside a checkpoint, under whatever key those are."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms.contents import averager_states
from weight_averaging.tensor_names import clean_names
from weight_averaging.torch.load_guard import checksums
from weight_averaging.torch.model.tensors import real


def put_raw(path: Path, models: Sequence[dict[str, Tensor]], contents: Any) -> None:
    """Put the raw weights in place of an average that was in a model when the checkpoint was written.

    The averager's own state has the raw weights and the checksums of the average. Its names are those of the model it
    was made for, which may be a part of the one that was saved.

    Args:
        path: for errors.
        models: the state dicts in the checkpoint, changed in place.
        contents: the whole checkpoint.
    Raises:
        SnapshotError: the weights are neither the average nor the raw ones.
    """
    for averager in averager_states(contents):
        if averager.get("raw") is None:
            continue
        raw = dict(zip(averager["names"], averager["raw"], strict=True))
        places = [(state, *place) for state in models for place in _places(state, raw)]
        if not places:
            raise SnapshotError(
                f"{path}: an averager's state has raw weights aside, and they do not fit the model at {next(iter(raw))}"
            )
        for state, prefix, saved in places:
            held = [real(state[saved[prefix + name]]) for name in raw]
            if checksums(held) == list(averager["checksums"]):
                tied = _by_memory(state)
                for name, value in {**raw, **averager["raw_statistics"]}.items():
                    _put(path, state, saved.get(prefix + name, ""), name, value, tied)
                break
        else:
            if not any(
                all(torch.equal(real(state[saved[prefix + name]]), value) for name, value in raw.items())
                for state, prefix, saved in places
            ):
                raise SnapshotError(
                    f"{path}: an averager had its average in the model when its state was saved, and the weights here "
                    "are neither that average nor the raw ones"
                )


def _places(state: Mapping[str, Tensor], raw: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, str]]]:
    """The prefixes under which a state dict has all these names and shapes, with its names as saved by plain ones."""
    first = next(iter(raw))
    for plain in (list(state), clean_names(list(state))):
        saved = dict(zip(plain, state))
        for candidate in plain:
            if candidate == first or candidate.endswith("." + first):
                prefix = candidate.removesuffix(first)
                if all(
                    prefix + name in saved and real(state[saved[prefix + name]]).shape == value.shape
                    for name, value in raw.items()
                ):
                    yield prefix, saved


def _put(
    path: Path,
    state: dict[str, Tensor],
    saved: str,
    name: str,
    value: Tensor,
    tied: Mapping[tuple[int, ...], list[str]],
) -> None:
    there = state.get(saved)
    if there is not None and there.is_complex():
        value = torch.view_as_complex(value)
    if there is None or there.shape != value.shape:
        raise SnapshotError(f"{path}: the raw weights aside the average do not fit the model at {name}")
    for other in tied.get(memory_of(there), [saved]):
        state[other] = value


def _by_memory(state: Mapping[str, Tensor]) -> dict[tuple[int, ...], list[str]]:
    """The names of tensors by the memory they are in; those without elements are in none."""
    found: dict[tuple[int, ...], list[str]] = {}
    for name, tensor in state.items():
        if tensor.numel():
            found.setdefault(memory_of(tensor), []).append(name)
    return found


def memory_of(tensor: Tensor) -> tuple[int, ...]:
    """Where a tensor is, and its shape: the same of tied weights, which a state dict has under two names."""
    return (tensor.data_ptr(), *tensor.shape)
