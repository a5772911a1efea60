"""States of averagers of sharded models (DTensors, FSDP2) for checkpoints that one rank writes and all ranks read."""

from typing import Any

import torch.distributed as dist

from weight_averaging.torch import Averager
from weight_averaging.torch.model.tensors import spread, whole


class InOneFile:
    """A state that one rank saves and all ranks load, of an averager of a sharded model (DTensors, FSDP2).

    accelerate does so with what is registered: `accelerator.register_for_checkpointing(InOneFile(lawa))`. It gathers
    the state, tensor by tensor, into the first rank's main memory. torch.distributed.checkpoint gathers nothing, and
    takes the averager's own state.
    """

    def __init__(self, averager: Averager) -> None:
        self.averager = averager

    def state_dict(self) -> dict[str, Any]:
        """Whole tensors on the first rank; collective."""
        return gathered(self.averager.state_dict())

    def load_state_dict(self, saved: dict[str, Any], *, settings: str = "same") -> None:
        """Take what `state_dict()` gave the first rank, on all ranks; collective.

        Args:
            saved: what was saved, as every rank has read it.
            settings: as in `Averager.load_state_dict`.
        """
        self.averager.load_state_dict(scattered(saved, self.averager), settings=settings)


def gathered(state: dict[str, Any]) -> dict[str, Any]:
    """A state with whole tensors in main memory on the first rank, and none on the others; collective.

    A state without DTensors is returned as it is.

    Args:
        state: of `Averager.state_dict()`; vectors of DTensors are there by name.
    """

    def first_has(vector: Any) -> Any:
        if not isinstance(vector, dict):
            return vector
        result = {}
        for name, tensor in vector.items():  # one at a time, so that no rank but the first ever holds a whole vector
            full = whole(tensor)
            if dist.get_rank() == 0:
                result[name] = full.cpu()
        return result

    tracks = [
        {**track, "vectors": [first_has(vector) for vector in track["vectors"][: len(track["snapshot_steps"])]]}
        for track in state["tracks"]
    ]
    return {**state, "tracks": tracks}


def scattered(state: dict[str, Any], averager: Averager) -> dict[str, Any]:
    """The inverse, for what all ranks have read: a state that `averager.load_state_dict` takes. Collective."""
    vectors = [vector for track in averager.state_dict()["tracks"] for vector in track["vectors"]]
    if not vectors or not isinstance(vectors[0], dict):  # without DTensors: whole ones by name are taken as they are
        return state
    like = vectors[0]

    def spread_all(vector: Any) -> Any:
        if not isinstance(vector, dict):
            return vector  # of a model without DTensors: refused by load_state_dict, which says so
        return {name: spread(tensor, like[name]) if name in like else tensor for name, tensor in vector.items()}

    tracks = [{**track, "vectors": [spread_all(vector) for vector in track["vectors"]]} for track in state["tracks"]]
    return {**state, "tracks": tracks}
