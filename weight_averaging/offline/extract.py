"""The average out of a saved checkpoint, as a state dict of its own: `weight-averaging extract`."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weight_averaging import averages
from weight_averaging.averages import Average, SnapshotError
from weight_averaging.offline.forms.averager_state import memory_of
from weight_averaging.offline.forms.contents import averager_states
from weight_averaging.offline.forms.damage import reading
from weight_averaging.offline.forms.pickles import load_file
from weight_averaging.offline.forms.records import check_all
from weight_averaging.offline.forms.trainers import MODEL_KEYS
from weight_averaging.offline.remote import present
from weight_averaging.tensor_names import clean_names
from weight_averaging.torch.tracks.mean import accumulators, pairwise_mean, weighted_sum


def average_of_state(state: Mapping[str, Any], average: str | None = None) -> dict[str, Tensor]:
    """The average that a saved state of an averager holds, in the model's types.

    Args:
        state: from `state_dict()` of an averager.
        average: which one of several, as its description prints.
    Raises:
        SnapshotError: it holds none yet, or there are several and `average` is none of them. A window of your own is
            refused too: the state has its snapshots but not their weights.
    """
    if state["buffers"] == "recompute":
        raise SnapshotError(
            'an averager with buffers="recompute" saves no batch-norm statistics for its average: save '
            "model.state_dict() within averaged(recompute) instead"
        )
    vectors, window = _vectors(state, average)
    needed = window.needed if window else 1
    if len(vectors) < needed:
        needs = f"{len(vectors)} of {needed} snapshots" if needed > 1 else "no snapshot"
        raise SnapshotError(f"the saved {state['averager']} is not ready at step {state['step']}: it holds {needs}")
    names, shapes = state["names"], [torch.Size(shape) for shape in state["shapes"]]
    if isinstance(vectors[0], Mapping):  # of DTensors, by name
        tensors = {name: _combined([vector[name].reshape(-1) for vector in vectors], window) for name in names}
    else:
        pieces = _combined(vectors, window).split([shape.numel() for shape in shapes])
        tensors = dict(zip(names, pieces))
    result = {}
    for name, shape, kind in zip(names, shapes, state["dtypes"]):
        dtype = getattr(torch, kind)
        value = tensors[name].view(shape)
        result[name] = (torch.view_as_complex(value) if dtype.is_complex else value).to(dtype).clone()
    return result


def _vectors(state: Mapping[str, Any], average: str | None) -> tuple[list[Any], Average | None]:
    """The vectors of an average, oldest first, and of how many with which weights it is made; None: of the only one."""
    tracks, known = state["tracks"], state.get("averages")
    if known is None:
        if average is not None:
            raise SnapshotError(f"--average={average}: this is the state of one {state['averager']}")
        length, partial = tracks[0]["window"], bool(state.get("allow_partial"))
        return _held(tracks[0]), length and averages.LAWA(window=length, allow_partial=partial)
    if average is None and len(known) == 1 and state["averager"] != "Averages":
        average = known[0]
    if average is None or average not in known:
        given = "say which by --average" if average is None else f"{average!r} is not among them"
        raise SnapshotError(f"the state holds several averages, {given}: {'; '.join(known)}")
    if recursive := [track for track in tracks if track["average"] == average]:
        return _held(recursive[0]), None
    window = _window(average)
    for track in tracks:
        if track["window"] and (track["interval"], track["start"]) == (window.interval, window.start):
            return _held(track)[-(window.held or 0) :], window
    raise SnapshotError(f"the state has no track for {average}")


def _held(track: Mapping[str, Any]) -> list[Any]:
    return list(track["vectors"][: len(track["snapshot_steps"])])


_WINDOWS: dict[str, Callable[..., Average]] = {
    "lawa": averages.LAWA,
    "merge": averages.Merge,
    "weighted": averages.Weighted,
}
_VALUES: dict[str, Callable[[str], Any]] = {
    "window": int,
    "interval": int,
    "start": int,
    "allow_partial": "True".__eq__,
    "shape": str,
    "weights": lambda text: tuple(map(float, text.split(","))),
}


def _window(described: str) -> Average:
    """The window of this description. SnapshotError if its weights are not known here."""
    kind, *settings = described.split()
    if kind not in _WINDOWS:
        raise SnapshotError(
            f"the state does not say how {described} is made of its snapshots: load it into the averager, and save "
            "average_state_dict()"
        )
    pairs = (setting.split("=", 1) for setting in settings)
    return _WINDOWS[kind](**{name: _VALUES[name](value) for name, value in pairs})


def _combined(vectors: list[Tensor], window: Average | None) -> Tensor:
    """The average of snapshots, in the order in which averagers of live models add them."""
    if window is None or (window.is_mean and len(vectors) == 1):
        return vectors[0]
    sums = [torch.empty_like(vectors[0]) for _ in range(accumulators(len(vectors)) + 1)]
    if window.is_mean:
        return pairwise_mean(vectors, sums)
    return weighted_sum(vectors, sums, window.coefficients(len(vectors)))


def extract(path: Path, average: str | None = None, allow: Collection[str] = ()) -> dict[str, Tensor]:
    """The average in a checkpoint, with the rest of the model where the checkpoint has it.

    Args:
        path: a file of torch.save with the `state_dict()` of an averager anywhere in it.
        average: which one of several, as its description prints.
        allow: classes that the file may be made of, by their full names.
    Raises:
        SnapshotError: the file is damaged, would run code, or holds no state of an averager, or several.
    """
    with reading(path):
        check_all(present(path))
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
