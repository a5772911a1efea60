"""The average out of a saved checkpoint, as a state dict of its own: `weight-averaging extract`."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms.averager_state import memory_of
from weight_averaging.offline.forms.contents import averager_states
from weight_averaging.offline.forms.damage import reading
from weight_averaging.offline.forms.pickles import load_file
from weight_averaging.offline.forms.records import check_all
from weight_averaging.offline.forms.trainers import MODEL_KEYS
from weight_averaging.tensor_names import clean_names
from weight_averaging.torch.tracks.mean import accumulators, pairwise_mean


def average_of_state(state: Mapping[str, Any], average: str | None = None) -> dict[str, Tensor]:
    """The average that a saved state of an averager holds, in the model's types.

    Args:
        state: from `state_dict()` of a LAWA, an EMA or an Averages.
        average: which one of an Averages, as its description prints.
    Raises:
        SnapshotError: it holds none yet, or there are several and `average` is none of them.
    """
    if state["buffers"] == "recompute":
        raise SnapshotError(
            'an averager with buffers="recompute" saves no batch-norm statistics for its average: save '
            "model.state_dict() within averaged(recompute) instead"
        )
    vectors, window = _vectors(state, average)
    if not vectors or (window and len(vectors) < window):
        needs = f"{len(vectors)} of {window} snapshots" if window else "no snapshot"
        raise SnapshotError(f"the saved {state['averager']} is not ready at step {state['step']}: it holds {needs}")
    names, shapes = state["names"], [torch.Size(shape) for shape in state["shapes"]]
    if isinstance(vectors[0], Mapping):  # of DTensors, by name
        tensors = {name: _mean([vector[name].reshape(-1) for vector in vectors]) for name in names}
    else:
        pieces = _mean(vectors).split([shape.numel() for shape in shapes])
        tensors = dict(zip(names, pieces))
    result = {}
    for name, shape, kind in zip(names, shapes, state["dtypes"]):
        dtype = getattr(torch, kind)
        value = tensors[name].view(shape)
        result[name] = (torch.view_as_complex(value) if dtype.is_complex else value).to(dtype).clone()
    return result


def _vectors(state: Mapping[str, Any], average: str | None) -> tuple[list[Any], int]:
    """The vectors of an average, oldest first, and how many it needs (0: any)."""
    tracks = state["tracks"]
    if state["averager"] != "Averages":
        if average is not None:
            raise SnapshotError(f"--average={average}: this is the state of one {state['averager']}")
        vectors = list(tracks[0]["vectors"][: len(tracks[0]["snapshot_steps"])])
        return vectors, 0 if state.get("allow_partial") else tracks[0]["window"] or 0
    if average is None or average not in state["averages"]:
        given = "say which by --average" if average is None else f"{average!r} is not among them"
        raise SnapshotError(f"the state holds several averages, {given}: {'; '.join(state['averages'])}")
    for track in tracks:
        vectors = list(track["vectors"][: len(track["snapshot_steps"])])
        if track["average"] == average:
            return vectors, 0
        if track["window"] is not None:
            window, settings = _window(average)
            if settings == (track["interval"], track["start"]) and window:
                return (vectors[-window:] if len(vectors) >= window else vectors), window
    raise SnapshotError(f"the state has no track for {average}")


def _window(average: str) -> tuple[int, tuple[int, int]]:
    """Window, and (interval, start), of the description of a LAWA; (0, ...) of another average."""
    kind, *settings = average.split()
    if kind != "lawa":
        return 0, (0, 1)
    values = {name: int(value) for name, _, value in (setting.partition("=") for setting in settings)}
    return values["window"], (values["interval"], values.get("start", 1))


def _mean(vectors: list[Tensor]) -> Tensor:
    if len(vectors) == 1:
        return vectors[0]
    return pairwise_mean(vectors, [torch.empty_like(vectors[0]) for _ in range(accumulators(len(vectors)))])


def extract(path: Path, average: str | None = None, allow: Collection[str] = ()) -> dict[str, Tensor]:
    """The average in a checkpoint, with the rest of the model where the checkpoint has it.

    Args:
        path: a file of torch.save with the `state_dict()` of an averager anywhere in it.
        average: which one of an Averages, as its description prints.
        allow: classes that the file may be made of, by their full names.
    Raises:
        SnapshotError: the file is damaged, would run code, or holds no state of an averager, or several.
    """
    with reading(path):
        check_all(path)
        contents = load_file(path, allow)
        states = list(averager_states(contents))
        if len(states) != 1:
            found = f"{len(states)} of them" if states else "none"
            raise SnapshotError(f"{path} should hold the state_dict() of one averager, and holds {found}")
        return _extracted(contents, states[0], average)


def _extracted(contents: Mapping[str, Any], state: Mapping[str, Any], average: str | None) -> dict[str, Tensor]:
    result = average_of_state(state, average)
    model: Mapping[str, Any] = next((contents[key] for key in MODEL_KEYS if isinstance(contents.get(key), Mapping)), {})
    tensors = {name: value for name, value in model.items() if isinstance(value, Tensor)}
    for names in (list(tensors), clean_names(list(tensors))):  # `module.` may be a real one
        rest = dict(zip(names, tensors.values()))
        if result.keys() <= rest.keys():
            averaged = {memory_of(rest[name]): value for name, value in result.items() if rest[name].numel()}
            return {name: result.get(name, averaged.get(memory_of(value), value)) for name, value in rest.items()}
    return result
