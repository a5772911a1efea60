"""From documents to shards of tokens, so that a kill at any moment loses some seconds and changes nothing.

Every document is followed by the end-of-text token. Its text decides whether it is held out, so that two documents of
one text are on the same side. After every batch of documents the tokens are on disk. `progress.json` says how many of
them count, where the stream of documents is and what the checksums are so far. The run that resumes from there cuts off
whatever lies beyond.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from miniperf.workloads.finewebedu_lm import tokenizer
from miniperf.workloads.finewebedu_lm.shards import DTYPE, INDEX, SPLITS, read_index
from miniperf.workloads.finewebedu_lm.sources import Documents, Source
from weight_averaging.atomic_file import replacing
from weight_averaging.errors import UsageError

PROGRESS = "progress.json"
BATCH = 1000  # documents between two points that a preparation goes on from


@dataclass(frozen=True)
class Settings:
    """What decides which tokens are in which shard, beside the source.

    Attributes:
        held_out: share of the documents that validation gets, the others are trained on.
        shard_tokens: tokens of a full shard.
        max_tokens: of training, after which no further document is read; None: all there are.
    """

    held_out: float
    shard_tokens: int
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise UsageError(f"--held_out={self.held_out} must be a share of the documents in (0, 1)")
        if self.shard_tokens < 1:
            raise UsageError(f"--shard_tokens={self.shard_tokens} must be >= 1")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UsageError(f"--max_tokens={self.max_tokens} must be >= 1")


def prepare(
    source: Source, settings: Settings, folder: Path, threads: int, report: Callable[[int, int, int | None], object]
) -> dict[str, Any]:
    """Fill `folder`, from where an earlier call with the same arguments was stopped. Returns the index.

    Args:
        threads: that texts are encoded by.
        report: told after every batch, and once before the first: documents, tokens, and how many documents there are
            in all if that is known.
    Raises:
        UsageError: anything wrong with the arguments, the source or the disk.
    """
    wanted = {"source": source.settings(), "tokenizer": tokenizer.NAME, **vars(settings)}
    there = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / INDEX).exists():
            index = read_index(folder)
            _check_same(index.get("settings"), wanted, folder)
            return index
        try:
            return _prepare(source, settings, wanted, folder, threads, report)
        except UsageError:
            _leave_nothing(folder, there)
            raise
    except OSError as error:
        again = "mend that and give the same command again, which goes on from what is done"
        raise UsageError(f"{error.filename or folder}: {error.strerror or error}; {again}") from None


def _leave_nothing(folder: Path, there: bool) -> None:
    """Remove what a preparation that read no document has begun, with the folder if it was not there before."""
    progress = _read_progress(folder)
    if progress is not None and not progress["documents"]:
        for path in (folder / PROGRESS, *folder.glob("*.bin")):
            path.unlink(missing_ok=True)
    if not there and not any(folder.iterdir()):
        folder.rmdir()


def _prepare(
    source: Source,
    settings: Settings,
    wanted: dict[str, Any],
    folder: Path,
    threads: int,
    report: Callable[[int, int, int | None], object],
) -> dict[str, Any]:
    progress = _read_progress(folder)
    if progress is None and any(not path.name.startswith(f".partial_{PROGRESS}") for path in folder.iterdir()):
        raise UsageError(f"{folder} is not empty, and no preparation was begun there: give another --out")
    if progress is not None and progress["documents"]:
        _check_same(progress["settings"], wanted, folder)
    else:
        empty = {split: {"full": [], "tokens": 0, "crc32": 0} for split in SPLITS}
        progress = {"settings": wanted, "documents": 0, "empty": 0, "stream": None, "splits": empty}
    encode = tokenizer.load()
    documents = source.open()
    if progress["stream"] is not None:
        documents.load_state_dict(progress["stream"])
    _write_json(folder / PROGRESS, progress)  # before any shard: it says that the folder is ours
    writers = {split: Writer(folder, split, settings.shard_tokens, progress["splits"][split]) for split in SPLITS}
    with closing(writers["train"]), closing(writers["validation"]), ThreadPoolExecutor(threads) as pool:
        more = True
        while more:
            report(progress["documents"], sum(writer.total for writer in writers.values()), documents.count)
            more = _add_batch(documents, progress, writers, settings, partial(pool.map, encode))
            progress |= {"stream": documents.state_dict(), "splits": {s: w.flush() for s, w in writers.items()}}
            _write_json(folder / PROGRESS, progress)
        report(progress["documents"], sum(writer.total for writer in writers.values()), documents.count)
    index = {
        "tokenizer": tokenizer.NAME,
        "vocabulary": tokenizer.VOCABULARY,
        "end_of_text": tokenizer.END_OF_TEXT,
        "dtype": DTYPE.name,
        "settings": wanted,
        "documents": progress["documents"],
        "empty_documents": progress["empty"],
        "splits": {split: writer.shards() for split, writer in writers.items()},
    }
    lacking = [split for split, shards in index["splits"].items() if not shards]
    if lacking:
        advice = "give more of them or another --held_out, and another --out"
        raise UsageError(f"none of the {index['documents']} documents went to {lacking[0]}: {advice}")
    _write_json(folder / INDEX, index)
    for left in (folder / PROGRESS, *folder.glob(".partial_*")):  # the latter by a kill
        left.unlink(missing_ok=True)
    return index


def _add_batch(
    documents: Documents,
    progress: dict[str, Any],
    writers: dict[str, "Writer"],
    settings: Settings,
    encode_all: Callable[[list[str]], Iterator[np.ndarray]],
) -> bool:
    """Whether there are more documents to come."""

    def enough() -> bool:
        return settings.max_tokens is not None and writers["train"].total >= settings.max_tokens

    if enough():  # and killed before the index was written
        return False
    texts = list(islice(documents, BATCH))
    progress["documents"] += len(texts)
    texts, read = [text for text in texts if text], len(texts)
    progress["empty"] += read - len(texts)
    end = np.array([tokenizer.END_OF_TEXT], DTYPE)
    for text, tokens in zip(texts, encode_all(texts), strict=True):
        if enough():
            return False
        split = "validation" if held_out(text, settings.held_out) else "train"
        writers[split].append(np.concatenate([tokens, end]))
    return read == BATCH


def held_out(text: str, share: float) -> bool:
    """Whether a document belongs to validation: a hash of its text, as a number in [0, 1), is below the share."""
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


class Writer:
    """Appends the tokens of one split to its shards, all of the same size but the last.

    Args:
        state: that `flush` returned, with the shards that are full, and the tokens and the checksum of the last one.
    Raises:
        UsageError: the last one is shorter than the state says.
    """

    def __init__(self, folder: Path, split: str, size: int, state: dict[str, Any]) -> None:
        self._folder, self._split, self._size = folder, split, size
        self._full, self._tokens, self._crc32 = list(state["full"]), state["tokens"], state["crc32"]
        self._waiting: list[np.ndarray] = []
        self._waiting_tokens = 0
        path = self._path()
        length = path.stat().st_size if path.exists() else 0
        if length < self._tokens * DTYPE.itemsize:
            raise UsageError(f"{path} is shorter than {PROGRESS} says: delete the folder and begin anew")
        self._file: BinaryIO = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115  # until close
        self._file.truncate(self._tokens * DTYPE.itemsize)
        self._file.seek(0, os.SEEK_END)

    def _path(self) -> Path:
        return self._folder / f"{self._split}_{len(self._full):06d}.bin"

    @property
    def total(self) -> int:
        """Tokens so far."""
        return len(self._full) * self._size + self._tokens + self._waiting_tokens

    def append(self, tokens: np.ndarray) -> None:
        """Tokens, uint16 [n]; written by the next `flush`."""
        self._waiting.append(tokens)
        self._waiting_tokens += len(tokens)

    def flush(self) -> dict[str, Any]:
        """Put on disk what was appended; returns the state."""
        tokens = np.concatenate(self._waiting).astype(DTYPE) if self._waiting else np.empty(0, DTYPE)
        self._waiting, self._waiting_tokens = [], 0
        while len(tokens):
            part, tokens = np.split(tokens, [self._size - self._tokens])
            data = part.tobytes()
            self._file.write(data)
            self._crc32 = zlib.crc32(data, self._crc32)
            self._tokens += len(part)
            if self._tokens == self._size:
                self._sync()
                self._full.append(self._entry())
                self._tokens = self._crc32 = 0
                self._file.close()
                self._file = open(self._path(), "w+b")  # noqa: SIM115  # until close
        self._sync()
        return {"full": list(self._full), "tokens": self._tokens, "crc32": self._crc32}

    def shards(self) -> list[dict[str, Any]]:
        """Of all that was flushed, for the index; an empty last one is removed."""
        if self._tokens:
            return [*self._full, self._entry()]
        self._path().unlink(missing_ok=True)
        return self._full

    def _entry(self) -> dict[str, Any]:
        return {"file": self._path().name, "tokens": self._tokens, "crc32": self._crc32}

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _check_same(found: Any, wanted: dict[str, Any], folder: Path) -> None:
    wanted = json.loads(json.dumps(wanted))
    differing = [key for key in wanted if not isinstance(found, dict) or found.get(key) != wanted[key]]
    if differing:
        key = differing[0]
        old = found.get(key) if isinstance(found, dict) else None
        was = " ".join(f"{old}".split())[:100]
        raise UsageError(f"{folder} was prepared with another {key}, {was}: give another --out, or delete it")


def _read_progress(folder: Path) -> dict[str, Any] | None:
    path = folder / PROGRESS
    try:
        progress: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        raise UsageError(f"{path} is damaged: delete the folder and begin anew") from None
    return progress


def _write_json(path: Path, contents: dict[str, Any]) -> None:
    with replacing(path) as file:
        file.write(json.dumps(contents, indent=1).encode())
