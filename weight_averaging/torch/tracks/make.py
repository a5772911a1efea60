"""Tracks for averages, with their memory, on the rank that is to hold it."""

import logging
from collections.abc import Sequence
from typing import Any

from weight_averaging import placement as host
from weight_averaging.averages import Average, FollowsRate
from weight_averaging.placement import promise, size
from weight_averaging.torch.memory.host_copies import CudaStreams, HostCopies, NoStreams
from weight_averaging.torch.memory.placement import Memory, choose
from weight_averaging.torch.model.ranks import Ranks
from weight_averaging.torch.model.spare_copy import SpareCopy
from weight_averaging.torch.tracks.exponential import ExponentialTrack
from weight_averaging.torch.tracks.follows_rate import RateTrack
from weight_averaging.torch.tracks.track import Track
from weight_averaging.torch.tracks.window import WindowTrack

logger = logging.getLogger("weight_averaging")


class TrackMaker:
    """Makes the tracks of one model. All raise as `placement.choose`.

    Args:
        spare: the spare copy of the model's weights.
        ranks: of replicas the first holds what one is enough for.
        placement: "auto", "device" or "host".
        defers: whether snapshots are taken before they are known to be finite.
    """

    def __init__(self, spare: SpareCopy, ranks: Ranks, placement: str, defers: bool) -> None:
        self._spare, self._weights, self._ranks = spare, spare.weights, ranks
        self._placement, self._defers = placement, defers
        # What copies snapshots to host memory beside training, one for all tracks of a model.
        device = self._weights.device
        streams = CudaStreams(device) if device.type == "cuda" else NoStreams()
        self._copies = None if device.type == "cpu" else HostCopies(streams)

    def make(self, averages: Sequence[Average]) -> dict[Average, Track]:
        """The track of each average; windows of one interval share the longest one's."""
        held: dict[tuple[int | None, int], int] = {}
        for average in averages:
            if average.held is not None:
                key = (average.interval, average.start)
                held[key] = max(held.get(key, 0), average.held)
        windows = {key: self._window(*key, window) for key, window in held.items()}
        return {
            average: self._exponential(average) if average.held is None else windows[average.interval, average.start]
            for average in averages
        }

    def _window(self, interval: int | None, start: int, window: int) -> WindowTrack:
        """A window of snapshots; of replicas the first holds it."""
        if not self._ranks.is_owner:
            return WindowTrack(self._spare, interval, start, None, None, True, window=window, one_more=self._defers)
        holds = f"a window of {window} snapshots of {self._weights.numel:,} weights"
        memory = self._memory(self._placement, window + self._defers, holds, by_owner=True)
        used = self._used(memory)
        return promise(
            WindowTrack(self._spare, interval, start, memory, used, True, window=window, one_more=self._defers)
        )

    def _exponential(self, average: Average) -> ExponentialTrack:
        """A recursion, where the model is (also under "auto"); on the host the first of replicas holds it."""
        placement = "device" if self._placement == "auto" else self._placement
        by_owner, timing = placement == "host", (average.interval, average.start)
        if by_owner and not self._ranks.is_owner:
            return self._recursion(average, *timing, None, None, True)
        # In other memory than the model's, the snapshot that arrives has a vector of its own.
        vectors = 2 if placement == "host" and self._weights.device.type != "cpu" else 1
        holds = f"an exponential average of {self._weights.numel:,} weights"
        memory = self._memory(placement, vectors, holds, by_owner)
        used = self._used(memory)
        return promise(self._recursion(average, *timing, memory, used, by_owner))

    def _recursion(self, average: Average, *arguments: Any) -> ExponentialTrack:
        if isinstance(average, FollowsRate):
            return RateTrack(self._spare, *arguments, average=average)
        return ExponentialTrack(self._spare, *arguments, average=average)

    def _memory(self, placement: str, vectors: int, holds: str, by_owner: bool) -> Memory:
        weights = self._weights
        need, ranks = weights.dtype.itemsize * weights.numel * vectors, self._ranks.holders(by_owner)
        place = choose(placement, weights.device, need, holds, ranks)
        others = self._ranks.on_their_own
        if place.type == "cpu" and others > 1 and need * others > host.free_host_bytes():
            logger.warning(
                "%s is %s on each of %d ranks here, if all make one, and %s are free: give process_group=, so that one "
                "rank holds it for all, or make it on one rank",
                *(holds, size(need), others, size(host.free_host_bytes())),
            )
        return Memory(place, place.type == "cpu" and weights.device.type == "cuda", weights.dtype)

    def _used(self, memory: Memory) -> HostCopies | None:
        """The copies, if snapshots have to be copied from one memory to another."""
        if memory.place.type != "cpu" or self._weights.device.type == "cpu":
            return None
        self._spare.is_kept = True
        return self._copies
