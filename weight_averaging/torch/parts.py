"""Ranks that hold different tensors of one model (pipeline stages, experts): one state of all, one average of all."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from weight_averaging.torch.model.ranks import Ranks
from weight_averaging.torch.model.tensors import is_sharded
from weight_averaging.torch.model.weights import LiveWeights
from weight_averaging.torch.whole import WholeAverage

_PER_TENSOR = ("names", "shapes", "dtypes")


def keys_of(weights: LiveWeights, ranks: Ranks) -> list[dict[str, str]]:
    """For each rank the names of its tensors, by their keys in a state of all of them. Collective.

    A key is the name, where only one rank has it, or all those of one device mesh. Otherwise they may be different
    tensors (experts that each rank counts from 0), and the key says which rank's it is: `experts.0.weight@3`.
    """
    tensors = zip(weights.names, weights.global_tensors(), strict=True)
    meshes = {name: tuple(t.device_mesh.mesh.flatten().tolist()) if is_sharded(t) else () for name, t in tensors}  # type: ignore[attr-defined]
    everywhere = ranks.of_parts(meshes)
    owners: dict[str, set[Any]] = {}
    for rank, names in enumerate(everywhere):
        for name, mesh in names.items():
            owners.setdefault(name, set()).add(mesh or rank)
    return [
        {name if len(owners[name]) == 1 else f"{name}@{rank}": name for name in names}
        for rank, names in enumerate(everywhere)
    ]


def state_of_all(state: dict[str, Any], weights: LiveWeights, ranks: Ranks) -> dict[str, Any]:
    """A state with the vectors of this rank's tensors, and what is known of those of all ranks. Collective."""
    every, here = keys_of(weights, ranks), dist.get_rank(ranks.parts)
    key_of = {name: key for key, name in every[here].items()}
    described = ranks.of_parts([state[what] for what in _PER_TENSOR])
    known: dict[str, tuple[Any, ...]] = {}
    for keys, whats in zip(every, described, strict=True):
        known |= dict(zip(keys, zip(*whats, strict=True), strict=True))
    state |= {"names": list(known), "shapes": [s for _, s, _ in known.values()]}
    state["dtypes"] = [dtype for _, _, dtype in known.values()]
    for track in state["tracks"]:
        track["vectors"] = [{key_of[name]: t for name, t in vector.items()} for vector in track["vectors"]]
    return state


def state_of_one(state: dict[str, Any], weights: LiveWeights, ranks: Ranks) -> dict[str, Any]:
    """The part of a state of all ranks that is about this one's tensors, or about nobody's. Collective.

    Raises:
        ValueError: it was saved by another rank, and has none of this one's vectors; or it is of another model.
    """
    every = keys_of(weights, ranks)
    mine = every[dist.get_rank(ranks.parts)]
    others = set().union(*every) - set(mine)
    if not set().union(*every).intersection(state["names"]):
        raise ValueError(f"the saved state is of another model: no rank has a tensor of it ({state['names'][0]}, ...)")
    if any(isinstance(vector, Tensor) for track in state["tracks"] for vector in track["vectors"]):
        return state  # of one rank, from before it knew of others
    kept = [place for place, key in enumerate(state["names"]) if key not in others]
    named = {what: [state[what][place] for place in kept] for what in _PER_TENSOR}
    named["names"] = [mine.get(key, key) for key in named["names"]]
    needed = {key for key in state["names"] if key in mine}
    tracks = []
    for track in state["tracks"]:
        for vector in track["vectors"][: len(track["snapshot_steps"])]:
            if lacking := sorted(needed - set(vector)):
                raise ValueError(
                    f"the state was saved by another rank, and has no vector of {lacking[0]}: load this rank's own, or "
                    "through torch.distributed.checkpoint"
                )
        vectors = [
            {mine.get(key, key): t for key, t in vector.items() if key not in others} for vector in track["vectors"]
        ]
        tracks.append({**track, "vectors": vectors})
    return {**state, **named, "tracks": tracks}


class WholeOfParts:
    """As `WholeAverage`, of the tensors of all ranks; the first rank walks over its own, then over each other one's.

    Args:
        whole: of this rank's tensors.
    Attributes: as of `WholeAverage`.
    """

    def __init__(self, whole: WholeAverage, ranks: Ranks, device: torch.device) -> None:
        self._whole, self._ranks, self._device = whole, ranks, device
        told = ranks.of_parts((whole.names, whole.sizes, whole.kinds, whole.tied, whole.others, ranks.is_first))
        self._is_wanted = told[0][-1]  # of several groups only that of the first rank of all sends it anything
        described = [what for *what, _ in told]
        self._kinds = [dict(zip(dict(sizes), kinds, strict=True)) for _, sizes, kinds, _, _ in described]
        self._count = Counter(name for kinds in self._kinds for name in kinds)
        self.names = list(dict.fromkeys(name for names, *_ in described for name in names))
        self.sizes = list({name: (name, size) for _, sizes, *_ in described for name, size in sizes}.values())
        self.tied = {name: first for *_, tied, _ in described for name, first in tied.items()}
        self.others: dict[str, Any] = {name: value for *_, others in described for name, value in others.items()}
        self._differing = [name for name in self.tied if name in self._count]
        self._seen: dict[str, bytes] = {}

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors in main memory on the first rank; nothing on the others. Collective.

        Raises:
            ValueError: two ranks have different tensors of one name; on all ranks, at the end.
        """
        here, group = dist.get_rank(self._ranks.parts), self._ranks.parts
        for source, kinds in enumerate(self._kinds):
            if source == here:
                for name, tensor in self._whole:
                    if here == 0 and self._ranks.is_first:
                        yield from self._new(name, tensor)
                    elif here and self._is_wanted and tensor.numel():
                        dist.send(_bytes(tensor).to(self._device), dist.get_global_rank(group, 0), group=group)
            elif here == 0 and self._ranks.is_first:
                for name, (shape, dtype) in kinds.items():
                    received = torch.empty(shape, dtype=dtype, device=self._device)
                    if received.numel():
                        dist.recv(_bytes(received), dist.get_global_rank(group, source), group=group)
                    yield from self._new(name, received.cpu())
        if not self._ranks.all_agree(not self._differing, self._device):
            which = f" of {self._differing[0]}" if self._differing else ""
            raise ValueError(
                f"the ranks of model_parallel_group have different tensors{which} under one name, so that no file can "
                "have both: give their modules names that say which stage or expert they are"
            )

    def _new(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """A tensor, if no rank before had it."""
        if self._count[name] > 1:
            digest = hashlib.blake2b(bytes(_bytes(tensor).numpy()), digest_size=16).digest()
            if name in self._seen:
                if self._seen[name] != digest:
                    self._differing.append(name)
                return
            self._seen[name] = digest
        yield name, tensor


def _bytes(tensor: Tensor) -> Tensor:
    """Its memory, which not every backend takes under every type."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)
