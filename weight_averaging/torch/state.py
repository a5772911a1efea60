"""What an averager holds, to look at."""

from dataclasses import dataclass

import torch

from weight_averaging.placement import size
from weight_averaging.torch.collector import Collector


@dataclass(frozen=True)
class State:
    """What an averager holds now; the twin of the counters in JAX's LAWAState and EMAState.

    Attributes:
        steps: the updates whose snapshots are held (a window), or the last one taken in (an EMA); oldest first.
        count: snapshots taken in so far.
        refused: snapshots that were due and not finite, since the averager was made or loaded.
        place: the device of what is held; None where another rank holds it.
        nbytes: bytes of what is held there, and of the spare copy of the model's weights.
    """

    steps: tuple[int, ...]
    count: int
    refused: int
    place: torch.device | None
    nbytes: int

    @classmethod
    def of(cls, averager: Collector) -> "State":
        """What this averager holds, of the average that it shows."""
        averager._settle()
        vectors = [vector for track in averager._tracks for vector in track.slots()]
        nbytes = sum(v.numel() * v.element_size() for v in vectors) + averager._spare.nbytes
        track = averager._shown
        return cls(tuple(track.steps), track.count, averager._refused, track.place, nbytes)

    def __str__(self) -> str:
        last = f", the last of update {self.steps[-1]}" if self.steps else ""
        where = "" if self.place is None else f" on {self.place}"
        refused = f"; refused {self.refused}" if self.refused else ""
        return f"holds {len(self.steps)}{last}, {size(self.nbytes)}{where}{refused}"
