"""What a rehearsal writes down while the harness's runner is at work, and reads afterwards.

Of the weights a sample is kept, the same entries at every moment. An average is made entry by entry. So a sample shows
whether it is right, and takes kilobytes.
"""

import json
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ENTRIES = 64  # of a tensor
EVENTS = "events.jsonl"
# Weights by moment: after update t, as training sees them in update t, as evaluation t sees them, as restored.
UPDATED, TRAINED, SEEN, RESTORED = "updated", "trained", "seen", "restored"


def places(size: int) -> np.ndarray:
    """The entries of a flat tensor of this size that are kept: evenly spread."""
    return np.linspace(0, size - 1, min(size, ENTRIES)).astype(np.int64)


class Record:
    """Written by one process, that of rank 0, a part of a run after another; read by the one that started it."""

    def __init__(self, folder: Path, part: int = 0) -> None:
        """`part`: 1 of a run that is begun, 2 of one that is resumed."""
        self.folder, self.part = folder, part

    def event(self, name: str, step: int = 0, **values: Any) -> None:
        """Add a line: what, after how many updates, when, and this process's processor time and peak of memory."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        spent = {"at": time.time(), "cpu_s": time.process_time(), "host_gib": peak}
        line = {"event": name, "part": self.part, "step": step, **spent, **values}
        with open(self.folder / EVENTS, "a") as file:
            file.write(json.dumps(line) + "\n")

    def keep(self, moment: str, step: int, samples: Sequence[np.ndarray]) -> None:
        """Keep the sampled entries of all tensors, in float32."""
        flat = np.concatenate([np.asarray(sample, np.float32).reshape(-1) for sample in samples])
        np.save(self.folder / f"{moment}_{step}.npy", flat)

    def events(self) -> list[dict[str, Any]]:
        """All lines that are whole: a kill may have cut the last."""
        path = self.folder / EVENTS
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def weights(self, moment: str) -> dict[int, np.ndarray]:
        """By step; what was not written to its end is left out."""
        found = {}
        for path in self.folder.glob(f"{moment}_*.npy"):
            try:
                found[int(path.stem.rpartition("_")[2])] = np.load(path)
            except (EOFError, ValueError):
                continue
        return dict(sorted(found.items()))

    def batch(self) -> dict[str, int | None]:
        """The batch of an update, and what it is in a real run; None if the run did not come so far."""
        asked = [event for event in self.events() if event["event"] == "batch size"]
        last = asked[-1] if asked else {}
        return {"batch": last.get("batch"), "official_batch": last.get("official")}
