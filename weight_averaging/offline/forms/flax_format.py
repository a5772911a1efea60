"""Trees of arrays in msgpack, as flax.serialization has them.

Extension 1 is an array and 3 a single number, both as (shape, name of the type, bytes in C order). An array of more
than 1 GiB is a map of parts.
"""

import contextlib
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.safetensors_files import TYPES, bytes_of

ARRAY, _NUMBER = 1, 3
_PARTS = "__msgpack_chunked_array__"
_MOST = 1 << 30  # bytes of a part
_KNOWN = {str(dtype).removeprefix("torch."): dtype for dtype in (*TYPES.values(), torch.complex128)}

Place = tuple[str, ...]


class Array(NamedTuple):
    """An array of a file: its parts by their numbers among the file's extensions.

    Attributes:
        dtype: None where torch does not have it.
        code: of the extension.
        value: of a single number.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    parts: tuple[int, ...]
    code: int = ARRAY
    value: float | None = None

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()


def unpacked(path: Path, wanted: dict[int, Any]) -> Any:
    """The tree of a file with `Array`s for its arrays; the bytes of those whose numbers are `wanted` are put there."""
    try:
        import msgpack
    except ImportError:
        raise SnapshotError(f"{path} is msgpack, as Flax writes it: install the package msgpack to read it") from None
    seen = 0

    def extension(code: int, data: bytes) -> Any:
        nonlocal seen
        seen += 1
        if seen - 1 in wanted:
            wanted[seen - 1] = data
        if code not in (ARRAY, _NUMBER):
            return msgpack.ExtType(code, data)
        shape, dtype, contents = fields(data)
        value = None
        if dtype is not None:
            if torch.Size(shape).numel() * dtype.itemsize != len(contents):
                raise SnapshotError("the bytes of an array do not fit its shape")
            value = tensor_of(contents, dtype).item() if torch.Size(shape).numel() == 1 else None
        return Array(shape, dtype, (seen - 1,), code, value)

    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "rb"))
        mapped = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        try:
            return msgpack.unpackb(mapped, ext_hook=extension, object_hook=_whole, strict_map_key=False)
        except SnapshotError as error:
            raise SnapshotError(f"{path} is damaged: {error}") from None
        except Exception as error:  # what msgpack raises depends on where the damage is
            raise SnapshotError(f"{path} is damaged or truncated: {error or type(error).__name__}") from None


def fields(data: bytes) -> tuple[tuple[int, ...], torch.dtype | None, bytes]:
    """Shape, type and bytes of an array."""
    import msgpack

    shape, name, contents = msgpack.unpackb(data, raw=True)
    if not all(type(length) is int and length >= 0 for length in shape) or not isinstance(contents, bytes):
        raise SnapshotError("the shape of an array is not of whole numbers")
    return tuple(shape), _KNOWN.get(name.decode()), contents


def _whole(found: dict[Any, Any]) -> Any:
    """A map, or the array of which it has the parts."""
    if _PARTS not in found:
        return found
    shape = tuple(found["shape"][str(number)] for number in range(len(found["shape"])))
    parts = [found["chunks"][str(number)] for number in range(len(found["chunks"]))]
    if sum(part.numel for part in parts) != torch.Size(shape).numel() or len({part.dtype for part in parts}) != 1:
        raise SnapshotError("the parts of an array do not fit its shape")
    return Array(shape, parts[0].dtype, tuple(part.parts[0] for part in parts), ARRAY)


def tensor_of(data: bytes, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


def leaves(tree: Any, place: Place = ()) -> Iterator[tuple[Place, Array]]:
    """The arrays of a tree, with the keys that lead to each."""
    if isinstance(tree, Array):
        yield place, tree
    elif isinstance(tree, Mapping):
        for key, inner in tree.items():
            yield from leaves(inner, (*place, str(key)))


def packed(tensor: Tensor) -> Any:
    """An array as Flax writes it; of more than `_MOST` bytes in parts."""
    import msgpack

    name, flat = str(tensor.dtype).removeprefix("torch."), tensor.detach().cpu().contiguous().view(-1)

    def extension(part: Tensor, shape: tuple[int, ...]) -> Any:
        return msgpack.ExtType(ARRAY, msgpack.packb((shape, name, bytes_of(part))))

    shape, most = tuple(tensor.shape), max(1, _MOST // tensor.element_size())
    if len(flat) <= most:
        return extension(flat, shape)
    return in_parts(shape, [extension(part, (len(part),)) for part in flat.split(most)])


def in_parts(shape: tuple[int, ...], parts: list[Any]) -> dict[str, Any]:
    return {
        _PARTS: True,
        "shape": {str(number): length for number, length in enumerate(shape)},
        "chunks": {str(number): part for number, part in enumerate(parts)},
    }
