"""The average handed out, without touching the model in training."""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from weight_averaging.tensor_names import without_wrappers
from weight_averaging.torch.model.selection import all_entries, unwrapped
from weight_averaging.torch.model.tensors import local, plain_tensors, real, spread_like, writing

if TYPE_CHECKING:
    from weight_averaging.torch.averager import Averager


@plain_tensors
def average_state_dict(averager: "Averager") -> dict[str, Any]:
    """See `Averager.average_state_dict`."""
    _check(averager, "average_state_dict()")
    if not averager._prepare():
        raise RuntimeError(f"there is no average yet: {averager!r}")
    weights = averager._weights
    places = weights.index_by_id()
    state = unwrapped(averager._model).state_dict(keep_vars=True)
    found = {places[id(value)] for value in state.values() if id(value) in places}
    for index, entry in enumerate(weights.entries):
        if index not in found and not (entry.is_buffer and entry.key in entry.module._non_persistent_buffers_set):
            raise RuntimeError(
                f"the model's state_dict has not got {entry.name} as it is: save model.state_dict() within averaged()"
            )
    live = weights.tensors()
    averages = [torch.empty_like(tensor, memory_format=torch.preserve_format) for tensor in live]
    averager._write(averages)
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


@plain_tensors
def copy_to(averager: "Averager", other: nn.Module) -> bool:
    """See `Averager.copy_to`."""
    _check(averager, "copy_to()")
    ready = averager._prepare()
    weights = averager._weights
    theirs = {entry.name: entry.tensor() for entry in all_entries(other)}
    pairs: list[tuple[Tensor, Tensor]] = []
    for entry in all_entries(averager._model):
        mine, their = entry.tensor(), theirs.get(entry.name)
        if mine is their:
            raise ValueError(f"copy_to: {entry.name} of the other model is the model's own: copy.deepcopy(model) first")
        if their is None or mine is None or local(their).shape != local(mine).shape:
            has = "has no" if their is None else f"has shape {list(their.shape)} for"
            raise ValueError(
                f"copy_to: the other {type(other).__name__} {has} {entry.name}; it must be a copy of the model"
            )
        pairs.append((their, mine))
    places = weights.index_by_id() if ready else {}
    targets: dict[int, list[Tensor]] = {number: [] for number in places}  # several, where only the model's are tied
    with writing([their for their, _ in pairs]):
        for their, mine in pairs:
            if id(mine) in places:
                targets[id(mine)].append(real(local(their.detach())))
            else:
                local(their.detach()).copy_(local(mine.detach()))
    if ready:
        _write(averager, [same[0] for same in targets.values()])  # in the order of the model's tensors
    for first, *rest in targets.values():
        with writing(rest):
            for target in rest:
                target.copy_(first)
    return ready


def _write(averager: "Averager", into: list[Tensor]) -> None:
    live = averager._weights.tensors()
    # Blocks are cut for tensors laid out as the model's; and a broadcast wants the model's device.
    alike = all(a.is_contiguous() == b.is_contiguous() for a, b in zip(into, live, strict=True))
    if alike and not averager._shown.by_owner:
        averager._write(into)
        return
    averages = [torch.empty_like(tensor) for tensor in live]
    averager._write(averages)
    with writing(into):
        for target, average in zip(into, averages, strict=True):
            target.copy_(average)


def _check(averager: "Averager", what: str) -> None:
    if averager.buffers == "recompute":
        raise TypeError(
            f'{what} has no batch-norm statistics for buffers="recompute": use the model within averaged(recompute)'
        )
    if averager._ranks.is_flat:
        raise RuntimeError(f"{what} cannot be had under FSDP1: save the model's own state_dict within averaged()")
