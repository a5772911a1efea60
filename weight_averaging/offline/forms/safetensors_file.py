"""One file in the safetensors format; among them the snapshots of `weight_averaging.offline.recording`."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms.contents.scores import Score, scores_of_strings
from weight_averaging.offline.forms.source import Source
from weight_averaging.offline.forms.trainers import EPOCH_KEYS, STEP_KEYS
from weight_averaging.offline.safetensors_files import FROZEN, LATEST, SafetensorsFile

_PART = re.compile(r"\d+-of-\d+")


class SafetensorsSource(Source):
    """A file that holds a whole model.

    Raises:
        SnapshotError: it is damaged, or one of several parts.
    """

    form = "safetensors file"
    in_parts = False  # whether one of several parts may be read alone

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if _PART.search(path.stem) and not self.in_parts:
            raise SnapshotError(f"{path} is one of several parts of a model: name the folder that has all of them")
        self._file = SafetensorsFile(path)
        self.layout, self.mapped = self._file.layout, self._file.aligned
        self.own_names = LATEST in self._file.metadata
        self.latest, self.frozen = self._names(LATEST), self._names(FROZEN)
        self.average = self._file.metadata.get("average", "")
        counts = {key: self._file.metadata.get(key, "") for key in (*STEP_KEYS, *EPOCH_KEYS)}
        self.counters = {key: int(text) for key, text in counts.items() if text.isdecimal() and len(text) < 19}

    def scores(self) -> Mapping[str, Score]:
        return scores_of_strings(self._file.metadata)

    def counter(self, key: str) -> int | None:
        text = self._file.metadata.get(key, "")
        return int(text) if text.isdecimal() and len(text) < 19 else None

    def read(self, names: list[str]) -> dict[str, Tensor]:
        return self._file.read(names)

    def _names(self, key: str) -> frozenset[str]:
        try:
            found = json.loads(self._file.metadata.get(key, "[]"))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise SnapshotError(f"{self.path} is damaged: {key!r} in its metadata is no list of names")
        return frozenset(found)
