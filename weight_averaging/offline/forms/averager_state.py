"""States of our averagers inside a checkpoint, under whatever key; and the raw weights out of those."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weight_averaging.averages import SnapshotError
from weight_averaging.tensor_names import clean_names
from weight_averaging.torch.load_guard import checksums
from weight_averaging.torch.model.tensors import real

_KEYS = {"averager", "tracks", "names"}


def averager_states(contents: Any, depth: int = 8) -> Iterator[Mapping[str, Any]]:
    """What `state_dict()` of averagers gave, anywhere in a checkpoint."""
    if isinstance(contents, Mapping):
        if is_averager_state(contents):
            yield contents
            return
        contents = list(contents.values())
    if isinstance(contents, list | tuple) and depth:
        for value in contents:
            yield from averager_states(value, depth - 1)


def is_averager_state(contents: Any) -> bool:
    return isinstance(contents, Mapping) and contents.keys() >= _KEYS


def put_raw(path: Path, state: dict[str, Tensor], contents: Any) -> None:
    """Put the raw weights in place of an average that was in the model when the checkpoint was written.

    The averager's own state has the raw weights and the checksums of the average. Its names are those of the model it
    was made for, which may be a part of the one that was saved.

    Args:
        path: for errors.
        state: the model's state dict, changed in place.
        contents: the whole checkpoint.
    Raises:
        SnapshotError: the weights are neither the average nor the raw ones.
    """
    for averager in averager_states(contents):
        if averager.get("raw") is None:
            continue
        raw = dict(zip(averager["names"], averager["raw"], strict=True))
        places = list(_places(state, raw))
        if not places:
            raise SnapshotError(
                f"{path}: an averager's state has raw weights aside, and they do not fit the model at {next(iter(raw))}"
            )
        for prefix, saved in places:
            held = [real(state[saved[prefix + name]]) for name in raw]
            if checksums(held) == list(averager["checksums"]):
                for name, value in {**raw, **averager["raw_statistics"]}.items():
                    _put(path, state, saved.get(prefix + name, ""), name, value)
                break
        else:
            prefix, saved = places[0]
            if not all(torch.equal(real(state[saved[prefix + name]]), value) for name, value in raw.items()):
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


def _put(path: Path, state: dict[str, Tensor], saved: str, name: str, value: Tensor) -> None:
    there = state.get(saved)
    if there is not None and there.is_complex():
        value = torch.view_as_complex(value)
    if there is None or there.shape != value.shape:
        raise SnapshotError(f"{path}: the raw weights aside the average do not fit the model at {name}")
    for tied in [name for name, tensor in state.items() if same_memory(tensor, there)]:
        state[tied] = value


def same_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are one: tied weights, which a state dict has under two names."""
    return one is other or (one.numel() > 0 and one.data_ptr() == other.data_ptr() and one.shape == other.shape)
