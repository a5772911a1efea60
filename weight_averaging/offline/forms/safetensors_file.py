"""One file in the safetensors format; among them the snapshots of `weight_averaging.offline.recording`."""

import json
import re
from pathlib import Path

from torch import Tensor

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms.source import Source
from weight_averaging.offline.safetensors_files import FROZEN, LATEST, SafetensorsFile

_PART = re.compile(r"\d+-of-\d+")


class SafetensorsSource(Source):
    """A file that holds a whole model.

    Raises:
        SnapshotError: it is damaged, or one of several parts.
    """

    form = "safetensors file"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if _PART.search(path.stem):
            raise SnapshotError(f"{path} is one of several parts of a model: name the folder that has all of them")
        self._file = SafetensorsFile(path)
        self.layout, self.mapped = self._file.layout, self._file.aligned
        self.own_names = LATEST in self._file.metadata
        self.latest = frozenset(json.loads(self._file.metadata.get(LATEST, "[]")))
        self.frozen = frozenset(json.loads(self._file.metadata.get(FROZEN, "[]")))

    def read(self, names: list[str]) -> dict[str, Tensor]:
        return self._file.read(names)
