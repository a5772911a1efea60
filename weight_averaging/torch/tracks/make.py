"""Tracks with their memory, on the rank that is to hold it. All raise as `placement.choose`."""

from weight_averaging.averages import Average
from weight_averaging.torch.memory.host_copies import CudaStreams, HostCopies
from weight_averaging.torch.memory.placement import Memory, choose
from weight_averaging.torch.model.ranks import Ranks
from weight_averaging.torch.model.weights import LiveWeights
from weight_averaging.torch.tracks.exponential import ExponentialTrack
from weight_averaging.torch.tracks.window import WindowTrack


def host_copies(weights: LiveWeights) -> HostCopies | None:
    """What copies snapshots of a model to host memory beside training, one for all its tracks; None if not on CUDA."""
    return HostCopies(CudaStreams(weights.device)) if weights.device.type == "cuda" else None


def window_track(
    weights: LiveWeights,
    ranks: Ranks,
    copies: HostCopies | None,
    interval: int,
    start: int,
    window: int,
    placement: str,
    spare: bool,
) -> WindowTrack:
    """A window of snapshots; of replicas the first holds it."""
    if not ranks.is_owner:
        return WindowTrack(weights, interval, start, None, None, True, window=window, spare=spare)
    holds = f"a window of {window} snapshots of {weights.numel:,} weights"
    memory = _memory(weights, placement, window + spare, holds)
    used = _used(weights, copies, memory)
    return WindowTrack(weights, interval, start, memory, used, True, window=window, spare=spare)


def exponential_track(
    weights: LiveWeights,
    ranks: Ranks,
    copies: HostCopies | None,
    average: Average,
    placement: str,
) -> ExponentialTrack:
    """An exponential average, where the model is (also under `"auto"`); on the host the first of replicas holds it."""
    placement = "device" if placement == "auto" else placement
    by_owner = placement == "host"
    if by_owner and not ranks.is_owner:
        return ExponentialTrack(weights, average.interval, average.start, None, None, True, average=average)
    # In other memory than the model's, the snapshot that arrives has a vector of its own.
    vectors = 2 if placement == "host" and weights.device.type != "cpu" else 1
    memory = _memory(weights, placement, vectors, f"an exponential average of {weights.numel:,} weights")
    used = _used(weights, copies, memory)
    return ExponentialTrack(weights, average.interval, average.start, memory, used, by_owner, average=average)


def _memory(weights: LiveWeights, placement: str, vectors: int, holds: str) -> Memory:
    place = choose(placement, weights.device, 4 * weights.numel * vectors, holds)
    return Memory(place, pinned=place.type == "cpu" and weights.device.type == "cuda")


def _used(weights: LiveWeights, copies: HostCopies | None, memory: Memory) -> HostCopies | None:
    """The copies, if snapshots have to be copied from one memory to another."""
    if memory.place.type != "cpu" or weights.device.type == "cpu":
        return None
    weights.keeps_buffer = True
    return copies
