"""The folder of a tokenised data set: shards of uint16 tokens, `train_000000.bin`, and `index.json` that lists them.

The index is written last. It has the tokenizer's name and the number of its ids, the end-of-text id, and the type of a
token. It says what the data was made from. For each split it lists the shards in order, with their numbers of tokens
and CRC-32.
"""

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from weight_averaging.errors import UsageError

INDEX = "index.json"
DTYPE = np.dtype("<u2")
SPLITS = ("train", "validation")
MEND = "copy it again, or prepare the text anew"
BLOCK = 1 << 22  # tokens that are checked at a time


def read_index(folder: Path) -> dict[str, Any]:
    """UsageError where there is none, or it is not one."""
    remedy = "scripts.prepare_text makes one (docs/language_model.md)"
    if not folder.is_dir():
        raise UsageError(f"--data_dir={folder}: there is no such folder of tokenised text; {remedy}")
    path = folder / INDEX
    try:
        index = json.loads(path.read_text())
        complete = {"tokenizer", "vocabulary", "end_of_text", "dtype", "splits"} <= index.keys()
        if not complete or index["dtype"] != DTYPE.name or not set(SPLITS) <= index["splits"].keys():
            raise ValueError("not an index of uint16 shards")
    except FileNotFoundError:
        unfinished = "its preparation is not finished" if any(folder.glob("*.bin")) else "no tokenised text"
        raise UsageError(f"--data_dir={folder}: no {INDEX} there, {unfinished}; {remedy}") from None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UsageError(f"{path} cannot be used ({error}); {remedy}") from None
    return index


class Tokens:
    """One split, memory-mapped.

    Args:
        folder: of the shards.
        split: "train" or "validation".
        tokenizer: the name of that which the model's ids are of.
        vocabulary: how many ids the model knows.
    Raises:
        UsageError: no index, another tokenizer, more ids than the model knows, or a shard missing or of another size.
    """

    def __init__(self, folder: Path, split: str, tokenizer: str, vocabulary: int) -> None:
        index = read_index(folder)
        if index["tokenizer"] != tokenizer:
            raise UsageError(f"{folder} holds tokens of {index['tokenizer']!r}, the model wants {tokenizer!r}")
        if index["vocabulary"] > vocabulary:
            raise UsageError(f"{folder} has {index['vocabulary']} ids, more than the {vocabulary} of the model")
        self.folder, self.split, self.vocabulary = folder, split, vocabulary
        self._entries: list[dict[str, Any]] = index["splits"][split]
        self._shards = [self._map(entry) for entry in self._entries]
        self._ends = np.cumsum([len(shard) for shard in self._shards])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def _map(self, entry: dict[str, Any]) -> np.ndarray:
        path = self.folder / entry["file"]
        size = path.stat().st_size if path.exists() else None
        if size != entry["tokens"] * DTYPE.itemsize:
            found = "is missing" if size is None else f"has {size} bytes, not {entry['tokens'] * DTYPE.itemsize}"
            raise UsageError(f"{path} {found}: {MEND}")
        return np.memmap(path, DTYPE, mode="r")

    def check(self, done: Callable[[int], object] = lambda tokens: None) -> None:
        """Read everything. UsageError if a checksum differs or an id is none of the model's.

        Args:
            done: told every number of tokens that have just been read.
        """
        for entry, shard in zip(self._entries, self._shards, strict=True):
            checksum = largest = 0
            for start in range(0, len(shard), BLOCK):
                block = np.asarray(shard[start : start + BLOCK])
                checksum = zlib.crc32(block.tobytes(), checksum)
                largest = max(largest, int(block.max()))
                done(len(block))
            path = self.folder / entry["file"]
            if checksum != entry["crc32"]:
                raise UsageError(f"{path}: its checksum is not the index's: {MEND}")
            if largest >= self.vocabulary:
                raise UsageError(f"{path} has the id {largest}; the model's are 0 ... {self.vocabulary - 1}")

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens `start` ... `start + count - 1` of the split, uint16 [count], across shards where need be."""
        parts = []
        shard = int(np.searchsorted(self._ends, start, side="right"))
        while count > 0:
            begin = start - (int(self._ends[shard - 1]) if shard else 0)
            part = self._shards[shard][begin : begin + count]
            parts.append(part)
            start, count, shard = start + len(part), count - len(part), shard + 1
        return np.concatenate(parts) if len(parts) != 1 else np.asarray(parts[0])
