"""The average handed out, without touching the model in training."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from weight_averaging.tensor_names import without_wrappers
from weight_averaging.torch.model.modes import weights_change
from weight_averaging.torch.model.ranks import Ranks
from weight_averaging.torch.model.selection import all_entries
from weight_averaging.torch.model.tensors import local, real, spread_like, writing
from weight_averaging.torch.model.weights import LiveWeights
from weight_averaging.torch.model.wrappers import as_module, live_state
from weight_averaging.torch.options import Model

Write = Callable[[list[Tensor]], object]  # overwrites tensors like the model's with the average


def check(what: str, buffers: str, ranks: Ranks) -> None:
    """Refuse what cannot be handed out.

    Raises:
        TypeError: there are no batch-norm statistics of the average.
        RuntimeError: what is on this rank are pieces of a flat vector (FSDP1).
    """
    if buffers == "recompute":
        raise TypeError(
            f'{what} has no batch-norm statistics for buffers="recompute": use the model within averaged(recompute)'
        )
    if ranks.is_flat:
        raise RuntimeError(f"{what} cannot be had under FSDP1: save the model's own state_dict within averaged()")


def state_of(model: nn.Module, weights: LiveWeights) -> dict[str, Any]:
    """The state dict of a plain model, of its own tensors.

    Raises:
        RuntimeError: an averaged one is not in it.
    """
    places = weights.index_by_id()
    state: dict[str, Any] = live_state(model)
    found = {places[id(value)] for value in state.values() if id(value) in places}
    for index, entry in enumerate(weights.entries):
        if index not in found and not (entry.is_buffer and entry.key in entry.module._non_persistent_buffers_set):
            raise RuntimeError(
                f"the model's state_dict has not got {entry.name} as it is: save model.state_dict() within averaged()"
            )
    return state


def average_state_dict(model: nn.Module, weights: LiveWeights, write: Write) -> dict[str, Any]:
    """The state dict of a plain model with the average in it, of new tensors; see `Averager.average_state_dict`."""
    places, state = weights.index_by_id(), state_of(model, weights)
    averages = [torch.empty_like(tensor, memory_format=torch.preserve_format) for tensor in weights.tensors()]
    write(averages)
    shaped = [
        torch.view_as_complex(average) if dtype.is_complex else average
        for average, dtype in zip(averages, weights.dtypes, strict=True)
    ]
    whole = [spread_like(tensor, like) for tensor, like in zip(shaped, weights.global_tensors(), strict=True)]

    def handed_out(value: Any) -> Any:
        if id(value) in places:
            return whole[places[id(value)]]
        return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)

    return {without_wrappers(name): handed_out(value) for name, value in state.items()}


def copy_to(other: Model, model: nn.Module, weights: LiveWeights, write: Write | None, alike: bool) -> None:
    """Overwrite another model with this one; see `Averager.copy_to`.

    Args:
        write: None: there is no average, and all is copied as the model has it.
        alike: whether `write` may go to tensors on another device.
    """
    theirs: dict[str, list[Tensor | None]] = {}
    for entry in all_entries(as_module(other)):
        theirs.setdefault(entry.name, []).append(entry.tensor())  # what is not averaged several stages may have
    pairs: list[tuple[Tensor, Tensor]] = []
    for entry in all_entries(model):
        mine, same = entry.tensor(), theirs.get(entry.name)
        their = same.pop(0) if same else None
        if mine is their:
            raise ValueError(f"copy_to: {entry.name} of the other model is the model's own: copy.deepcopy(model) first")
        if their is None or mine is None or local(their).shape != local(mine).shape:
            has = "has no" if their is None else f"has shape {list(their.shape)} for"
            raise ValueError(
                f"copy_to: the other {type(other).__name__} {has} {entry.name}; it must be a copy of the model"
            )
        pairs.append((their, mine))
    with weights_change(as_module(other).modules()):
        _copy(pairs, weights, write, alike)


def _copy(pairs: list[tuple[Tensor, Tensor]], weights: LiveWeights, write: Write | None, alike: bool) -> None:
    """From the second of each pair, or by `write` where it is averaged, into the first."""
    places = weights.index_by_id() if write is not None else {}
    targets: dict[int, list[Tensor]] = {number: [] for number in places}  # several, where only the model's are tied
    with writing([their for their, _ in pairs]):
        for their, mine in pairs:
            if id(mine) in places:
                targets[id(mine)].append(real(local(their.detach())))
            else:
                local(their.detach()).copy_(local(mine.detach()))
    if write is not None:
        _write(write, [same[0] for same in targets.values()], weights.tensors(), alike)  # in the order of the tensors
    for first, *rest in targets.values():
        with writing(rest):
            for target in rest:
                target.copy_(first)


def _write(write: Write, into: list[Tensor], live: list[Tensor], alike: bool) -> None:
    # Blocks are cut for tensors laid out as the model's; and a broadcast wants the model's device.
    if alike and all(a.is_contiguous() == b.is_contiguous() for a, b in zip(into, live, strict=True)):
        write(into)
        return
    averages = [torch.empty_like(tensor) for tensor in live]
    write(averages)
    with writing(into):
        for target, average in zip(into, averages, strict=True):
            target.copy_(average)
