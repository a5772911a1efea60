"""Tensors on their way through pickle, copy.deepcopy or to another process: always copies.

torch sends tensors to other processes as shared memory, which both sides would go on writing.
"""

import io
from multiprocessing.context import get_spawning_popen
from typing import Any

import torch
from torch import Tensor


class Packed(bytes):
    """Tensors as the bytes of a file."""


def packed(value: Any) -> Any:
    """A tensor, or a list of some, as a copy; any other value as it is."""
    if not isinstance(value, Tensor) and not (isinstance(value, list) and value and isinstance(value[0], Tensor)):
        return value
    if get_spawning_popen() is None:
        return value.clone() if isinstance(value, Tensor) else [tensor.clone() for tensor in value]
    # A process that starts is handed file descriptors of shared memory, and a copy would be gone before it has started.
    file = io.BytesIO()
    torch.save(value, file)
    return Packed(file.getvalue())


def unpacked(value: Any) -> Any:
    """The other way."""
    return torch.load(io.BytesIO(value), weights_only=True) if isinstance(value, Packed) else value
