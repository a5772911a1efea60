"""Saved states of averagers: what fits what, and vectors of shards as DTensors."""

from typing import Any

import torch
from torch import Tensor

from weight_averaging.torch.tracks import Track, WindowTrack
from weight_averaging.torch.weights import LiveWeights, clean_names, is_sharded, local


def track_state(weights: LiveWeights, track: Track) -> dict[str, Any]:
    """The state of a track, oldest vector first; of a model with DTensors also the memory not used yet."""
    vectors = track.slots() if weights.is_sharded else track.vectors()
    return {
        "snapshot_steps": list(track.steps),
        "vectors": [_by_name(weights, vector) for vector in vectors] if weights.is_sharded else vectors,
    }


def restore_track(
    weights: LiveWeights,
    saved: dict[str, Any],
    state: dict[str, Any],
    order: list[int],
    track: Track,
    is_owner: bool,
) -> tuple[list[Tensor], list[int]]:
    """The vectors and steps of a saved track, in the order of this model's tensors.

    Args:
        state: the whole state that `saved` is part of.
        order: for each of this model's tensors its place in the state, from `fits`.
        is_owner: whether this rank keeps vectors at all.
    Raises:
        ValueError: vectors are missing, or not as long as their shapes say.
    """
    steps = list(saved["snapshot_steps"])
    if isinstance(track, WindowTrack) and not is_owner:
        return [], steps
    vectors = saved["vectors"][: len(steps)]
    if len(vectors) < len(steps):
        raise ValueError("the state was saved by a rank that holds no snapshots: load that of the group's first rank")
    return [_flat(weights, vector, state, order) for vector in vectors], steps


def fits(weights: LiveWeights, names: list[str], shapes: list[tuple[int, ...]]) -> list[int]:
    """For each of this model's tensors its place in a saved state; a ValueError where they do not all match."""
    where = {name: index for index, name in enumerate(clean_names(names))}
    mine = weights.names
    lacking = [name for name in mine if name not in where]
    extra = set(where) - set(mine)
    if lacking or extra:
        raise ValueError(
            f"the saved state is of another model: {len(lacking)} of {len(mine)} tensors are not in it "
            f"({_some(lacking)}), {len(extra)} of its own are not in this model ({_some(sorted(extra))})"
        )
    for name, shape in zip(mine, weights.shapes, strict=True):
        if shapes[where[name]] != shape:
            raise ValueError(f"the saved {name} has shape {shapes[where[name]]}, this model's {shape}")
    return [where[name] for name in mine]


def _flat(weights: LiveWeights, vector: Any, state: dict[str, Any], order: list[int]) -> Tensor:
    if isinstance(vector, dict):  # by name, as of a model with DTensors
        shards = [local(vector[name]) for name in weights.names]
        shapes = [tuple(t.shape) for t in shards]
        if shapes != weights.local_shapes:
            raise ValueError(
                "the saved DTensors are not spread as this model's: load them with torch.distributed.checkpoint"
            )
        return torch.cat([t.reshape(-1) for t in shards])
    numels = [torch.Size(shape).numel() for shape in state["shapes"]]
    if vector.numel() != sum(numels):
        raise ValueError(f"a saved vector has {vector.numel()} elements, its shapes {sum(numels)}")
    if weights.is_sharded:
        raise ValueError("the saved state is of a model without DTensors, this model has them")
    if order == sorted(order):
        return vector
    pieces = vector.split(numels)
    return torch.cat([pieces[index] for index in order])


def _by_name(weights: LiveWeights, vector: Tensor) -> dict[str, Tensor]:
    """A local vector as tensors that are spread over the ranks as the model's are; views."""
    named = {}
    for name, view, like in zip(weights.names, weights.views(vector), weights.global_tensors(), strict=True):
        if is_sharded(like):
            from torch.distributed.tensor import DTensor

            view = DTensor.from_local(
                view,
                like.device_mesh,  # type: ignore[attr-defined]
                like.placements,  # type: ignore[attr-defined]
                run_check=False,
                shape=like.shape,
                stride=like.stride(),
            )
        named[name] = view
    return named


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "none"
