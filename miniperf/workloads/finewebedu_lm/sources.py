"""Documents from the Hugging Face hub or from local files, through the `datasets` library, one at a time."""

import glob
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from weight_averaging.errors import UsageError

# What `datasets` calls the files of each kind; without their compression (.gz, .zst), which it looks through.
KINDS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class Source:
    """Where documents come from: `dataset` of the hub, or `files`.

    Attributes:
        dataset: its name there, "HuggingFaceFW/fineweb-edu" say, or a local folder that `datasets` understands.
        config: of the data set, where it has several.
        split: of the data set.
        files: patterns of local text files (one document each), JSON lines or parquet, all of one kind.
        field: the column that holds the text.
    """

    dataset: str | None = None
    config: str | None = None
    split: str = "train"
    files: tuple[str, ...] = ()
    field: str = "text"

    def settings(self) -> dict[str, Any]:
        """What documents depend on, for JSON; of local files a digest of their names and sizes."""
        if not self.files:
            return {key: value for key, value in asdict(self).items() if value is not None and key != "files"}
        sizes = {str(path): path.stat().st_size for path in self._paths()}
        digest = blake2b(repr(sorted(sizes.items())).encode(), digest_size=16).hexdigest()
        return {"files": len(sizes), "bytes": sum(sizes.values()), "digest": digest, "field": self.field}

    def open(self) -> "Documents":
        """UsageError if it cannot be opened."""
        if (self.dataset is None) == (not self.files):
            raise UsageError("say what to read: either a --dataset of the hub or local --files")
        try:
            import datasets
        except ImportError:
            raise UsageError("documents are read by datasets, which is not installed: pip install datasets") from None
        arguments: dict[str, Any]
        split = self.split
        if self.files:
            paths = self._paths()
            kinds = {_suffix(path) for path in paths}
            if len({KINDS.get(kind) for kind in kinds}) > 1 or not kinds <= KINDS.keys():
                wanted = ", ".join(KINDS)
                raise UsageError(f"--files must be of one kind out of {wanted}; these are {', '.join(sorted(kinds))}")
            kind = KINDS[kinds.pop()]
            options = {"sample_by": "document"} if kind == "text" else {}
            arguments = {"path": kind, "data_files": {"train": [str(path) for path in paths]}, **options}
            split = "train"
            name, count = f"--files={','.join(self.files)}", len(paths) if kind == "text" else None
        else:
            arguments, count = {"path": self.dataset, "name": self.config}, None
            name = f"--dataset={self.dataset}" + (f" --config={self.config}" if self.config else "")
        try:
            stream = datasets.load_dataset(**arguments, split=split, streaming=True)
            if count is None and stream.info.splits and split in stream.info.splits:
                count = stream.info.splits[split].num_examples
        except Exception as error:  # what is raised depends on what lies beneath
            raise UsageError(f"{name} cannot be opened: {_line(error)}") from None
        return Documents(stream, self.field, name, count or None)

    def _paths(self) -> list[Path]:
        found = []
        for pattern in self.files:
            paths = sorted(Path(path) for path in glob.glob(str(Path(pattern).expanduser()), recursive=True))
            if not paths:
                raise UsageError(f"--files={pattern}: there is no such file")
            found += paths
        return found


class Documents:
    """An iterator over texts that can be put back to where it was.

    Attributes:
        count: how many there are, if that is known.
    """

    def __init__(self, stream: Any, field: str, name: str, count: int | None) -> None:
        self._stream, self._field, self._name = stream, field, name
        self._examples: Iterator[dict[str, Any]] | None = None
        self.count = count

    def state_dict(self) -> dict[str, Any]:
        """Of the documents returned so far; for JSON."""
        state: dict[str, Any] = self._stream.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._stream.load_state_dict(state)

    def __iter__(self) -> "Documents":
        return self

    def __next__(self) -> str:
        try:
            if self._examples is None:
                self._examples = iter(self._stream)
            example = next(self._examples)
        except StopIteration:
            raise
        except Exception as error:  # what is raised depends on what lies beneath
            again = "the same command goes on from what is done"
            raise UsageError(f"{self._name}: reading failed ({_line(error)}); {again}") from None
        if self._field not in example:
            raise UsageError(f"{self._name} has no field {self._field!r}: choose --field from {', '.join(example)}")
        text = example[self._field]
        if text is None:
            return ""
        if not isinstance(text, str):
            raise UsageError(f"{self._name}: the field {self._field!r} holds {type(text).__name__}, not text")
        return text


def _suffix(path: Path) -> str:
    kept = [suffix for suffix in path.suffixes if suffix not in (".gz", ".zst", ".bz2", ".xz")]
    return kept[-1] if kept else path.suffix or str(path)


def _line(error: Exception) -> str:
    """The root of an error that the library has wrapped, in one line."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__
