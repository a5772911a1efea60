"""Tensors that are not plain ones: spread over ranks, complex, or made under torch.inference_mode."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor: one that is spread over ranks, or kept alike on all."""
    return hasattr(tensor, "to_local") and hasattr(tensor, "device_mesh")


def is_of_this_rank(tensor: Tensor) -> bool:
    """Whether a DTensor has this rank's shard. A pickled one has that of the rank that saved it, whoever loads it."""
    if not is_sharded(tensor):
        return True
    mesh = tensor.device_mesh  # type: ignore[attr-defined]
    place = (mesh.mesh == torch.distributed.get_rank()).nonzero().flatten().tolist()
    return bool(list(mesh.get_coordinate() or ()) == place)


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a DTensor; any other tensor as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """All of a DTensor, on every rank of its mesh: collective. Any other tensor as it is.

    Where two dimensions of a mesh cut one of the tensor, unevenly, torch 2.9's own `full_tensor` leaves zeros in it.
    """
    if not is_sharded(tensor):
        return tensor
    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    cuts = [(place.dim, mesh.size(number)) for number, place in enumerate(placements) if hasattr(place, "dim")]
    pieces = {dim: math.prod(size for other, size in cuts if other == dim) for dim, _ in cuts}
    if len(pieces) == len(cuts) or all(tensor.shape[dim] % count == 0 for dim, count in pieces.items()):
        return tensor.full_tensor()  # type: ignore[attr-defined, no-any-return]
    result = torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    result[_slices(tensor)] = local(tensor.detach())
    for number, place in enumerate(placements):
        if hasattr(place, "dim"):  # of bytes, so that -0.0 stays what it is
            torch.distributed.all_reduce(result.view(-1).view(torch.uint8), group=mesh.get_group(number))
    return result


def spread_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's shard as a DTensor that is spread as `like` is; as it is if that is none."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        tensor,
        like.device_mesh,  # type: ignore[attr-defined]
        like.placements,  # type: ignore[attr-defined]
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def spread(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every rank has, spread as `like` is and on its device; whole if that is no DTensor.

    Unlike torch's distribute_tensor it takes shards of tensor parallelism that FSDP2 has cut again (2-D meshes).
    """
    if not is_sharded(like):
        return tensor.to(like.device)
    return spread_like(tensor[_slices(like)].to(like.device).contiguous(), like)


def _slices(like: Tensor) -> tuple[slice, ...]:
    """The place of this rank's shard in the whole tensor."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)  # type: ignore[attr-defined]
    return tuple(slice(start, start + length) for start, length in zip(offset, shape, strict=True))


def real(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers; any other one as it is."""
    return torch.view_as_real(tensor) if tensor.is_complex() and not is_sharded(tensor) else tensor


@contextlib.contextmanager
def writing(tensors: list[Tensor]) -> Iterator[None]:
    """Allow changing tensors that were made under torch.inference_mode, which only that mode may."""
    if any(t.is_inference() for t in tensors):
        with torch.inference_mode():
            yield
    else:
        yield


P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


def plain_tensors(function: Callable[P, T]) -> Callable[P, T]:
    """Run without gradients, and outside torch.inference_mode: memory made in it could not be changed later."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                return function(*args, **kwargs)
        if not torch.is_grad_enabled():
            return function(*args, **kwargs)
        torch._C._set_grad_enabled(False)  # a small model's update is mostly overhead, and no_grad() a tenth of that
        try:
            return function(*args, **kwargs)
        finally:
            torch._C._set_grad_enabled(True)

    return run


def locked(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """One thread at a time in the methods of an object with a `_lock`, without gradients, as `plain_tensors`."""
    plain = plain_tensors(method)

    @functools.wraps(method)
    def run(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._lock:  # type: ignore[attr-defined]
            return plain(self, *args, **kwargs)

    return run
