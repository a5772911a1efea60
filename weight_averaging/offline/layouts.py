"""What a snapshot is made of: its tensors, and their shapes and types by name."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from weight_averaging.averages import SnapshotError

State = Mapping[str, Tensor]
Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]


def layout_of(state: State) -> Layout:
    """Shapes and types by name."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}


def layout_difference(first: Layout, other: Layout) -> str:
    """What makes `other` unlike `first`, in a few words; empty if nothing does."""
    for name, (shape, dtype) in first.items():
        if name not in other:
            return f"it has no {name}"
        if other[name] != (shape, dtype):
            return f"{name} is {_shown(*other[name])}, not {_shown(shape, dtype)}"
    extra = [name for name in other if name not in first]
    return f"it has {extra[0]} besides" if extra else ""


def check_alike(layouts: Mapping[Path, Layout]) -> None:
    """Refuse checkpoints of different models, and names without weights.

    Raises:
        SnapshotError: one is unlike the others; the message names that one, and one of those that most are like.
    """
    groups: list[tuple[Layout, list[Path]]] = []
    for path, layout in layouts.items():
        for first, paths in groups:
            if not layout_difference(first, layout):
                paths.append(path)
                break
        else:
            groups.append((layout, [path]))
    if empty_ones := [path for path, layout in layouts.items() if not layout]:
        raise SnapshotError(f"{empty_ones[0]} holds no tensors")
    usual, paths = max(groups, key=lambda group: len(group[1]))  # the first of those that are as many
    for other, (path, *_) in groups:
        if other is not usual:
            raise SnapshotError(f"{path} does not fit {paths[0]}: {layout_difference(usual, other)}")
    empty = [name for name, (shape, dtype) in usual.items() if dtype.is_floating_point and shape == (0,)]
    if empty and (any(name.endswith(".weight") for name in empty) or len(empty) == len(usual)):
        raise SnapshotError(
            f"{paths[0]}: {empty[0]} has no elements, as where DeepSpeed's ZeRO-3 has the weights elsewhere: name its "
            "folder instead, as global_step200"
        )


def nbytes(layout: Layout) -> int:
    """Of all tensors."""
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in layout.values())


def _shown(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"
