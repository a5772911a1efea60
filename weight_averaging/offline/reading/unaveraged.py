"""The tensors of snapshots that are not averaged: which they are, and whether those that must not change do."""

import logging
import zlib
from collections.abc import Collection

import torch
from torch import Tensor

from weight_averaging.averages import SnapshotError
from weight_averaging.include_exclude import Choice, Filter
from weight_averaging.offline.layouts import Layout
from weight_averaging.offline.safetensors_files import bytes_of
from weight_averaging.tensor_names import not_to_average
from weight_averaging.words import some

logger = logging.getLogger("weight_averaging")

_PROBE = 1024  # elements of a frozen tensor that are looked at: all of it would have to be read for nothing else
_QUANTISED = (
    "quantised weights cannot be averaged; give them 16 or 32 bits first, or take them from the latest snapshot as "
    "they are: exclude {!r}"
)


def latest_of(layout: Layout, include: Choice = None, exclude: Choice = None, known: Collection[str] = ()) -> set[str]:
    """The floating-point tensors that averages leave alone, to be taken from the latest snapshot.

    Args:
        layout: of the whole model, with clean names.
        include, exclude: as of `weight_averaging.include_exclude.Filter`; functions get a name and (shape, dtype).
        known: that training left alone, as recorded by `weight_averaging.offline.recording`.
    Raises:
        ValueError: `include` or `exclude` chooses nothing, or there are quantised weights that `exclude` does not name.
    """
    wanted, unwanted = Filter("include", include), Filter("exclude", exclude)
    for chosen in (wanted, unwanted):
        chosen.check(list(layout))
    by_name = not_to_average({name: dtype in (torch.int8, torch.uint8) for name, (_, dtype) in layout.items()})
    left = {name for name in layout if (name in by_name or name in known) and not wanted(name, layout[name])}
    excluded = {name for name in layout if unwanted(name, layout[name])}
    if quantised := [name for name in layout if name not in excluded and _has_scale(name, layout)]:
        raise ValueError(
            f"{quantised[0]} is {str(layout[quantised[0]][1]).removeprefix('torch.')} with a scale beside it: "
            + _QUANTISED.format(_module(quantised[0]))
        )
    return left | excluded


def _has_scale(name: str, layout: Layout) -> bool:
    """Whether it is an 8-bit float that means nothing without the scale beside it."""
    if not (layout[name][1].is_floating_point and layout[name][1].itemsize == 1):
        return False
    module = _module(name)
    return any("scale" in other.removeprefix(module) for other in layout if other.startswith(module) and other != name)


def _module(name: str) -> str:
    return name.rpartition(".")[0] or name


class Unchanging:
    """Along a run over snapshots: quantised weights must not change, frozen tensors should not.

    Integers come from the latest snapshot. Where they are weights (of two dimensions or more) that training changes,
    the averages of the scales beside them belong to other integers: an error.

    Args:
        frozen: names of tensors that training had frozen.
    """

    def __init__(self, frozen: Collection[str]) -> None:
        self._frozen = frozenset(frozen)
        self._changed: list[str] = []
        self.begin_part()

    def begin_part(self) -> None:
        """Other elements of the tensors follow."""
        self._seen: dict[str, int] = {}

    def see(self, step: int, name: str, tensor: Tensor, chosen: bool) -> None:
        """Take note of a tensor that is not averaged; `chosen` if that is for another reason than its type.

        Raises:
            SnapshotError: it holds quantised weights, and others than before.
        """
        if name in self._frozen:
            if name not in self._changed and self._differs(name, _middle(tensor)):
                self._changed.append(name)
            return
        could_be_weights = not chosen and len(tensor.shape) >= 2 and tensor.dtype != torch.bool
        if could_be_weights and self._differs(name, tensor):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise SnapshotError(
                f"step {step}: {name} is {kind} and changes along the snapshots: " + _QUANTISED.format(_module(name))
            )

    def end(self) -> None:
        if self._changed:
            logger.warning(
                "%d frozen tensors change along the snapshots, and are taken from the latest one as they are (%s): "
                "include them to have them averaged",
                len(self._changed),
                some(self._changed),
            )

    def _differs(self, name: str, tensor: Tensor) -> bool:
        """Whether it is not what it was at first."""
        data = tensor.detach().cpu().contiguous()  # held: `bytes_of` is a view
        checksum = zlib.crc32(bytes_of(data))
        return self._seen.setdefault(name, checksum) != checksum


def _middle(tensor: Tensor) -> Tensor:
    start = max(0, (tensor.numel() - _PROBE) // 2)
    return tensor.detach().reshape(-1)[start : start + _PROBE]
