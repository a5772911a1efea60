"""Master weights: the float32 copies from which an optimizer trains a model of fewer bits.

A bfloat16 model is its masters, rounded. An average of roundings is off by up to 2^-9 of a weight. That of the masters
is not. It is rounded once, on its way into the model.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from weight_averaging.torch.model.selection import Entry
from weight_averaging.torch.model.tensors import local, real

Source = Mapping[Tensor, Tensor] | Callable[[Tensor], Tensor | None] | Any

ELEMENTS = 8  # of each tensor that are compared: masters of another parameter differ nearly everywhere

# Attributes of optimizers that list parameters and, in the same order, their masters.
_LISTS = (
    ("fp16_groups", "fp32_from_fp16_groups"),  # Apex: FP16_Optimizer
    ("float16_groups", "fp32_from_float16_groups"),  # Megatron-core: Float16OptimizerWithFloat16Params
    ("param_groups", "param_groups_master"),  # Apex: FusedAdam(master_weights=True)
    ("fp16_groups", "fp32_groups"),  # DeepSpeed: FP16_UnfusedOptimizer
    ("all_fp16_params", "all_fp32_from_fp16_params"),  # Apex amp, in `_amp_stash`
)
_STATES = ("master_param",)  # TransformerEngine: FusedAdam(master_weights=True)


class Masters:
    """The masters of a model's parameters.

    Args:
        source: a mapping from parameters, or a function of a parameter, which returns its master or None. Or it is an
            optimizer that keeps them where `_LISTS` and `_STATES` say, also inside the wrappers of accelerate and
            Lightning. Or it is DeepSpeed's of ZeRO-1 or -2, of which each master is gathered at each use.
        partly: whether other ranks have the rest of the model, so that no tensor here need have one.
    Raises:
        TypeError: it is something else.
    """

    def __init__(self, source: Source, partly: bool = False) -> None:
        if not (isinstance(source, Mapping) or callable(source) or hasattr(source, "param_groups")):
            raise TypeError(
                "masters takes an optimizer, a mapping from parameters to their masters, or a function of a parameter "
                f"that returns its master or None, not {type(source).__name__}"
            )
        self._source, self._partly = source, partly

    def live(self, entries: list[Entry], tensors: list[Tensor], required: bool = True) -> list[Tensor]:
        """What snapshots are read from: masters, and `tensors` where a parameter of 32 bits or more has none.

        Args:
            tensors: of the entries, on this rank.
            required: whether parameters of fewer bits must have one.
        Raises:
            ValueError: one that must be there is not, or has another size or fewer than 32 bits.
        """
        found = self._found(entries, tensors)
        missing = [e.name for e, t, m in zip(entries, tensors, found) if m is None and _needs(e, t)]
        if not (self._partly or any(master is not None for master in found)):
            missing = missing or [entries[0].name]
        if required and missing:
            raise ValueError(f"masters: there is no float32 master of {missing[0]} {self._hint()}")
        return [tensor if master is None else master for master, tensor in zip(found, tensors)]

    def check(self, entries: list[Entry], tensors: list[Tensor]) -> None:
        """Refuse masters that are not what the model was rounded from, told by some elements. One wait for the device.

        Raises:
            ValueError: one of those that are there has another size or fewer than 32 bits, or is another parameter's.
        """
        names, values, masters, room = [], [], [], []
        for entry, tensor, master in zip(entries, tensors, self._found(entries, tensors), strict=True):
            if master is None or not tensor.numel():
                continue
            step = max(1, tensor.numel() // ELEMENTS)
            some = [t.reshape(-1)[::step][:ELEMENTS].to(tensors[0].device, torch.float64) for t in (tensor, master)]
            names += [entry.name] * len(some[0])
            values.append(some[0])
            masters.append(some[1])
            room.append(some[1].abs() * (2 * torch.finfo(tensor.dtype).eps) + torch.finfo(tensor.dtype).tiny)
        if not names:
            return
        value, master = torch.cat(values), torch.cat(masters)
        # No NaN is far, nor what has overflowed in fewer bits.
        far = ((value - master).abs() > torch.cat(room)) & value.isfinite()
        if place := far.nonzero().flatten()[:1].tolist():
            name, is_, of = names[place[0]], value[place[0]].item(), master[place[0]].item()
            raise ValueError(
                f"masters: {name} is {is_:.6g} where its master is {of:.6g}, which does not round to it: it is the "
                "master of another parameter, or the model was changed without it"
            )

    def overwrite(self, entries: list[Entry], tensors: list[Tensor], values: list[Tensor]) -> None:
        """Change the masters to `values`, in the order of the entries.

        Raises:
            RuntimeError: they are computed anew at each call of the function, so that what is written is lost.
        """
        masters, again = self._found(entries, tensors), self._found(entries, tensors)
        for entry, master, other in zip(entries, masters, again, strict=True):
            if master is not None and other is not None and master.data_ptr() != other.data_ptr():
                raise RuntimeError(
                    f"adopt(): the master of {entry.name} is computed at each call of the function given as masters=, "
                    "and cannot be written: set it in the optimizer, from average_state_dict()"
                )
        for master, value in zip(masters, values, strict=True):
            if master is not None:
                master.copy_(value)

    def _found(self, entries: list[Entry], tensors: list[Tensor]) -> list[Tensor | None]:
        """Shaped as `tensors`; views."""
        master_of = self._lookup()
        found: list[Tensor | None] = []
        for entry, tensor in zip(entries, tensors, strict=True):
            parameter = None if entry.is_buffer else entry.tensor()
            master = None if parameter is None else master_of(parameter)
            if master is not None:
                master = _checked(entry.name, real(local(master.detach())), tensor)
            found.append(master)
        return found

    def _lookup(self) -> Callable[[Tensor], Tensor | None]:
        if isinstance(self._source, Mapping):
            return self._source.get
        if not hasattr(self._source, "param_groups"):
            return self._source
        by_id: dict[int, Tensor] = {}
        states: list[Any] = []
        for layer in _layers(self._source):
            for mine, masters in _LISTS:
                if hasattr(layer, mine) and hasattr(layer, masters):
                    pairs = zip(_flat(getattr(layer, mine)), _flat(getattr(layer, masters)))
                    by_id.update((id(parameter), master) for parameter, master in pairs)
            states.append(getattr(layer, "state", {}))

        def lookup(parameter: Tensor) -> Tensor | None:
            for state in states:
                for key in _STATES:
                    if parameter in state and isinstance(master := state[parameter].get(key), Tensor):
                        return master
            if hasattr(parameter, "_hp_mapping"):  # DeepSpeed, whose masters are in pieces on all ranks
                return import_module("deepspeed.utils").safe_get_full_fp32_param(parameter)  # type: ignore[no-any-return]
            return by_id.get(id(parameter))

        return lookup

    def _hint(self) -> str:
        if isinstance(self._source, Mapping):
            return "in the mapping, whose keys are the model's parameters: add it"
        if not hasattr(self._source, "param_groups"):
            return "(the function returned None)"
        return (
            f"in {type(self._source).__name__}: it keeps none, or makes them at its first step, or has them in a place "
            "unknown here: give masters={parameter: master} or a function of a parameter, or leave masters= out to "
            "average the model's own weights"
        )


def _needs(entry: Entry, tensor: Tensor) -> bool:
    return not entry.is_buffer and tensor.element_size() < 4


def _checked(name: str, master: Tensor, tensor: Tensor) -> Tensor:
    if master.numel() != tensor.numel():
        raise ValueError(
            f"masters: the master of {name} has {master.numel()} elements, the parameter {tensor.numel()} on this rank"
        )
    if not master.is_floating_point() or master.element_size() < 4:
        raise ValueError(f"masters: the master of {name} is {master.dtype}, not torch.float32")
    return master.reshape(tensor.shape)


def _layers(optimizer: Any) -> Iterator[Any]:
    """The optimizer, what it has beside it, and the ones that it wraps."""
    seen: set[int] = set()
    while optimizer is not None and id(optimizer) not in seen:
        seen.add(id(optimizer))
        yield optimizer
        if (stash := getattr(optimizer, "_amp_stash", None)) is not None:
            yield stash
        optimizer = getattr(optimizer, "optimizer", None)


def _flat(groups: Iterable[Any]) -> Iterator[Tensor]:
    """Parameters in lists, lists of lists, or groups of an optimizer."""
    for group in groups:
        if isinstance(group, Tensor):
            yield group
        else:
            yield from _flat(group["params"] if isinstance(group, Mapping) else group)
