"""Files that are not read, told from what is damaged by their first bytes or what a zip has in it."""

import contextlib
import json
import zipfile
from pathlib import Path

from weight_averaging.offline.safetensors_files import MAX_HEADER

NOT_READ = (".keras", ".h5", ".hdf5", ".npz", ".gguf")  # names by which such files go
_MAGIC = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras and TensorFlow write them"),
    (b"GGUF", "a GGUF file, whose weights are quantised"),
    (b"\x93NUMPY", "an array of NumPy"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"BZh", "compressed by bzip2"),
    (b"version https://git-lfs", "a pointer of Git LFS, without the file itself"),
    (b"{", "JSON, with a model's structure"),
)
# What a zip holds that is none of torch.save's.
_IN_ZIP = (
    ("model.weights.h5", "a model of Keras"), ("metadata.json", "a model of Keras"), ("constants.pkl", "TorchScript"),
    ("saved_model.pb", "a model of TensorFlow"),
)  # fmt: skip


def other_format(path: Path) -> str:
    """What a file is, in a few words, if it is known and not a file of torch.save; else nothing."""
    with open(path, "rb") as file:
        head = file.read(64)
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head.startswith(b"PK"):
        with (
            contextlib.suppress(zipfile.BadZipFile, OSError, ValueError, NotImplementedError),
            zipfile.ZipFile(path) as file,
        ):
            inside = {name.rpartition("/")[2] for name in file.namelist()}
            if "data.pkl" in inside and "constants.pkl" not in inside:
                return ""
            for name, what in _IN_ZIP:
                if name in inside:
                    return what
            if all(name.endswith(".npy") for name in inside):
                return "an .npz file of NumPy"
            return "" if "data.pkl" in inside else "a zip that torch.save did not write"
    if _has_header(path):
        return "a safetensors file by another name"
    if is_msgpack(path):
        return "msgpack, as Flax writes its checkpoints"
    return ""


def _has_header(path: Path) -> bool:
    """Whether a file begins as safetensors do: the length of a header, and that header, JSON."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(path.stat().st_size - 8, MAX_HEADER) or file.read(1) != b"{":
            return False
        try:
            return isinstance(json.loads(b"{" + file.read(length - 1)), dict)
        except (ValueError, RecursionError):
            return False


def other_folder(path: Path) -> str:
    """The same of a folder: what it is, if it is known and not read; else nothing."""
    if is_orbax(path):
        return "a checkpoint of Orbax"
    if (path / "saved_model.pb").exists():
        return "a model of TensorFlow"
    return ""


def is_orbax(path: Path) -> bool:
    """Whether a folder is a checkpoint of Orbax, or one that it did not finish."""
    names = ("_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt")
    return any((folder / name).exists() for folder in (path, path / "default") for name in names)


def is_msgpack(path: Path) -> bool:
    """Whether a file begins as a map with a text as its first key, which no pickle does."""
    with open(path, "rb") as file:
        head = file.read(8)
    start = {0xDE: 3, 0xDF: 5}.get(head[0], 1 if 0x81 <= head[0] <= 0x8F else 0) if head else 0
    return bool(start) and len(head) > start + 1 and (0xA1 <= head[start] <= 0xBF or head[start] in (0xD9, 0xDA, 0xDB))
