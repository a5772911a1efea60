"""The latest training batches, for batch-norm statistics of averaged weights."""

from collections import deque
from typing import Any


class RecentBatches:
    """The batches of the latest `count` updates. Part of the optimizer state, hence with a state_dict.

    What the statistics are recomputed from must be training data that an update has paid for: an evaluation may not
    draw batches of its own.
    """

    def __init__(self, count: int) -> None:
        self.batches: deque[dict[str, Any]] = deque(maxlen=count)

    def append(self, batch: dict[str, Any]) -> None:
        self.batches.append(batch)

    def state_dict(self) -> dict[str, Any]:
        return {"batches": list(self.batches)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches = deque(state["batches"], maxlen=self.batches.maxlen)
