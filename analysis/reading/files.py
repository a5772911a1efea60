"""The log files below a folder or in a tar archive, and the folder for what is made of them."""

import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from weight_averaging.errors import UsageError

MEASUREMENTS = "eval_measurements.csv"
_WANTED = re.compile(r"eval_measurements\.csv|hparams\.json|(meta_data|flags)_\d+\.json")
_ARCHIVE = re.compile(r"\.(tar|tar\.(xz|gz|bz2)|tgz|txz)$")

Skipped = list[tuple[str, str]]  # path and reason of each thing left out


def is_archive(source: Path) -> bool:
    """Whether the name is that of a tar archive."""
    return _ARCHIVE.search(source.name) is not None


def output_folder(path: str | Path) -> Path:
    """The folder that --out names, made. UsageError where it cannot be."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out={path}: {error.strerror}; name another folder") from None
    return path


def files(source: Path, skipped: Skipped) -> Iterator[tuple[PurePosixPath, str]]:
    """Path and text of each log file below a folder or in an archive. Links that lead nowhere are added to `skipped`.

    Raises:
        UsageError: the source does not exist, or is no archive.
    """
    if source.is_dir():
        yield from _in_folder(source, skipped)
    elif source.is_file() and is_archive(source):
        yield from _in_archive(source, skipped)
    else:
        problem = "is neither a folder nor a tar archive" if source.exists() else "does not exist"
        raise UsageError(f"{_readable(str(source))} {problem}; name a folder of run logs or a .tar.xz of one")


def _readable(name: str) -> str:
    """A file's name that can be printed: bytes that are not UTF-8 as \\xNN, so that two names stay two."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _in_folder(source: Path, skipped: Skipped) -> Iterator[tuple[PurePosixPath, str]]:
    # Not resolved: a linked folder of a submission, study or workload counts under the name of the link.
    above: dict[str, set[str]] = {}  # each folder and those above it, without links
    for root, folders, names in os.walk(os.path.abspath(source), followlinks=True):
        above[root] = above.get(os.path.dirname(root), set()) | {os.path.realpath(root)}
        for folder in list(folders):
            path = os.path.join(root, folder)
            if os.path.islink(path) and any(f"{x}/".startswith(f"{os.path.realpath(path)}/") for x in above[root]):
                folders.remove(folder)
                skipped.append((_readable(path), "a link to a folder that it is in"))
        # Not what a run that is being deleted has left.
        folders[:] = sorted(folder for folder in folders if not folder.startswith(".partial_"))
        for name in sorted(names):
            path = os.path.join(root, name)
            if os.path.islink(path) and not os.path.exists(path):
                skipped.append((_readable(path), "a link that leads nowhere"))
            elif _WANTED.fullmatch(name):
                try:
                    yield PurePosixPath(_readable(path)), Path(path).read_text(errors="replace")
                except OSError as error:
                    skipped.append((_readable(path), f"cannot be read: {error.strerror}"))


def _in_archive(source: Path, skipped: Skipped) -> Iterator[tuple[PurePosixPath, str]]:
    shown = _readable(str(source))
    with source.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if not source.stat().st_size:
        raise UsageError(f"{shown} cannot be read as an archive: it is empty (0 bytes); fetch it again")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UsageError(f"{shown} cannot be read as an archive: it is a web page; fetch the file itself")
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                path = PurePosixPath(_readable(member.name))
                if member.issym() and not _WANTED.fullmatch(path.name):
                    skipped.append((str(path), "a link in an archive: pack with tar --dereference"))
                elif _WANTED.fullmatch(path.name):
                    try:
                        content = archive.extractfile(member)
                    except (KeyError, RecursionError):
                        skipped.append((str(path), "a link that leads nowhere"))
                    else:
                        if content is not None:
                            yield path, content.read().decode(errors="replace")
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(":")
        raise UsageError(f"{shown} cannot be read as an archive: {reason}") from None
