"""What a snapshot is made of: its tensors, and their shapes and types by name."""

from collections.abc import Mapping

import torch
from torch import Tensor

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


def _shown(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"
