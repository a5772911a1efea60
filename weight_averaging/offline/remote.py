"""Checkpoints in buckets (`s3://`, `gs://`, `hf://`, ...) as if they were on this machine, by fsspec.

    with Remote() as remote:
        snapshots = Snapshots(remote.path("s3://bucket/run"))

A temporary folder stands for the bucket. Small files are copied into it when a path is asked for. Of safetensors it has
the header. Their tensors are read by ranges, a group of whole tensors at a time, which takes memory and no disk. All
other files are copied whole when they are opened, since torch maps them. They take their size on the disk until the
end. What is written goes to the temporary folder first, and is uploaded when it is whole.
"""

import contextlib
import errno
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, TypeVar

from weight_averaging.averages import SnapshotError
from weight_averaging.placement import size
from weight_averaging.words import counted

_URL = re.compile(r"\b([a-z][a-z0-9+]+)://")
_SMALL = 1 << 20  # bytes of files that are copied at once
_HEAD = 1 << 16  # of a safetensors file that are read at first
_MOST = 10_000  # files of a folder

Result = TypeVar("Result")


class _File(NamedTuple):
    """Where the bytes of a local stand-in are."""

    system: Any
    name: str
    url: str
    size: int


_FILES: dict[Path, _File] = {}  # stand-ins whose bytes are elsewhere


def ranges_of(path: Path) -> Callable[[int, int], bytes] | None:
    """What reads the bytes [start, stop) of a file in a bucket that a safetensors file stands for; else None."""
    file = _FILES.get(path)
    if file is None or path.suffix != ".safetensors":
        return None
    return lambda start, stop: _asked(file.url, lambda: file.system.cat_file(file.name, start=start, end=stop))


def present(path: Path) -> Path:
    """A file or folder, copied from where it is if that has not been done yet; safetensors stay where they are."""
    if _FILES:
        for one, file in list(_FILES.items()):
            if one.suffix != ".safetensors" and (one == path or path in one.parents):
                _download(one, file)
    return path


def stamp_of(path: Path) -> object:
    """What changes when a file in a bucket is written anew; None for others."""
    file = _FILES.get(path)
    if file is None:
        return None
    file.system.invalidate_cache()
    return _asked(file.url, lambda: _stamp(file.system.info(file.name)))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file to be read from its beginning to its end, wherever it is."""
    file = _FILES.get(path)
    with file.system.open(file.name, "rb") if file is not None else open(path, "rb") as contents:
        yield contents


class Remote:
    """Paths that stand for URLs, within its `with` block."""

    def __init__(self) -> None:
        self._top: Path | None = None
        self._before: dict[Path, tuple[int, int]] = {}  # stand-ins of what is there already, where something is written

    def __enter__(self) -> "Remote":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._top is not None:
            for path in [path for path in _FILES if self._top in path.parents]:
                del _FILES[path]
            shutil.rmtree(self._top, ignore_errors=True)

    def local(self, text: str) -> str:
        """A text with local names instead of URLs; `file://` is the file itself."""
        if not (found := _URL.search(text)):
            return text
        if found[1] != "file" and self._top is None:
            self._top = Path(tempfile.mkdtemp(prefix="weight-averaging-")).resolve()
        return _URL.sub(lambda url: "" if url[1] == "file" else f"{self._top}/{url[1]}/", text)

    def shown(self, text: str) -> str:
        """The text with URLs instead of local names."""
        local = re.compile(re.escape(f"{self._top}/") + r"([a-z0-9+]+)/?")
        return (
            text
            if self._top is None
            else local.sub(lambda found: f"{found[1]}://{'/' if found[1] == 'local' else ''}", text)
        )

    def said(self, error: Exception) -> str:
        """What an error says, with URLs: a temporary folder that is full is none of theirs."""
        place = Path(str(error.filename)) if isinstance(error, OSError) and error.errno == errno.ENOSPC else None
        if place is not None and self._top in place.parents:
            return f"{self.shown(str(place))} does not fit into {_full()}"
        return self.shown(str(error))

    def path(self, url: str) -> Path:
        """A local path that stands for the file or folder at a url, which may be read."""
        path = Path(self.local(url))
        self.read(path)
        return path

    def read(self, path: Path) -> str:
        """Have a path in a bucket stand for all that is there, and say what that is. SnapshotError if nothing is."""
        if (place := self._place(path)) is None:
            return ""
        url, system, name = place
        files = _asked(url, lambda: _listed(system, name))
        if not files:
            raise SnapshotError(f"{url} is not there")
        if len(files) > _MOST:
            raise SnapshotError(f"{url} has {len(files)} files: name a folder of checkpoints")
        for info in files:
            self._stand_in(path, system, name, info)
        sizes = {info["name"]: int(info.get("size") or 0) for info in files}
        ranged = size(sum(length for own, length in sizes.items() if own.endswith(".safetensors")))
        found = (
            f"{size(sum(sizes.values()))} in {counted(len(files), 'file')}, of them {ranged} in safetensors, read by"
        )
        return f"{url}: {found} ranges; others are copied into {tempfile.gettempdir()} when opened, removed at the end"

    def _stand_in(self, path: Path, system: Any, top: str, info: dict[str, Any]) -> None:
        own, length = info["name"], int(info.get("size") or 0)
        local = _below(path, top, own)
        if local.exists():
            return
        file = _File(system, own, self.shown(str(local)), length)
        local.parent.mkdir(parents=True, exist_ok=True)
        if local.suffix == ".safetensors":
            _write_head(local, file)
            _FILES[local] = file
        elif length <= _SMALL or local.suffix == ".json":
            _download(local, file)
        else:
            local.touch()  # no zeros in its place, which could be taken for weights
            _FILES[local] = file

    def write(self, path: Path) -> None:
        """Have a path stand for what is there already, since something is to be written there."""
        if (place := self._place(path)) is None:
            return
        url, system, name = place
        path.parent.mkdir(parents=True, exist_ok=True)
        for info in _asked(url, lambda: _listed(system, name)):
            local = _below(path, name, info["name"])
            local.parent.mkdir(parents=True, exist_ok=True)
            if not local.exists():
                local.touch()
            self._before[local] = _inode(local)

    def upload(self, path: Path) -> None:
        """Bring what was written at a path to its place. What an error leaves half done there is removed."""
        if (place := self._place(path)) is None:
            return
        url, system, name = place
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        new = [file for file in files if self._before.get(file) != _inode(file)]
        target_of = {file: f"{name.rstrip('/')}/{file.relative_to(path).as_posix()}" for file in files if file != path}
        done: list[Path] = []
        try:
            for file in new:
                done.append(file)
                _asked(url, functools.partial(_put, system, file, target_of.get(file, name)))
        except BaseException:
            for file in done:
                if file not in self._before:  # what was there is whole, before or after
                    with contextlib.suppress(Exception):
                        system.rm_file(target_of.get(file, name))
            raise
        for gone in self._before.keys() - set(files):
            target = f"{name.rstrip('/')}/{gone.relative_to(path).as_posix()}"
            _asked(url, functools.partial(system.rm_file, target))

    def _place(self, path: Path) -> tuple[str, Any, str] | None:
        """URL, file system and name there of a local path; None if it stands for nothing elsewhere."""
        if self._top is None or self._top not in path.parents:
            return None
        protocol, *rest = path.relative_to(self._top).parts
        if ".." in rest:
            raise SnapshotError(f"{self.shown(str(path))}: name it without '..'")
        url = f"{protocol}://{'/' if protocol == 'local' else ''}{'/'.join(rest)}"
        system = _asked(url, lambda: _fsspec(url).filesystem(protocol))
        return url, system, _asked(url, lambda: system._strip_protocol(url))


def _fsspec(url: str) -> Any:
    try:
        import fsspec
    except ImportError:
        raise SnapshotError(f"{url} is read with fsspec: pip install 'weight-averaging[remote]'") from None
    return fsspec


def _asked(url: str, ask: Callable[[], Result]) -> Result:
    """What a file system answers; whatever is wrong with it is one line with the URL."""
    try:
        return ask()
    except SnapshotError:
        raise
    except FileNotFoundError:
        raise SnapshotError(f"{url} is not there") from None
    except ImportError as error:
        raise SnapshotError(f"{url}: {' '.join(str(error).split())}") from None
    except Exception as error:  # each of these libraries has its own
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise SnapshotError(f"{url} does not fit into {_full()}") from None
        line = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise SnapshotError(f"{url} cannot be reached: {line}") from None


def _full() -> str:
    return f"{tempfile.gettempdir()}: set TMPDIR to a folder on a larger disk"


def _listed(system: Any, name: str) -> list[dict[str, Any]]:
    """The files at or below a name; none if nothing is there."""
    system.invalidate_cache()  # others may have written meanwhile
    if system.isfile(name):
        return [{**system.info(name), "name": name}]
    if not system.exists(name):
        return []
    return list(system.find(name, detail=True).values())


def _below(path: Path, top: str, name: str) -> Path:
    """Where the file of a name stands, `path` being that of `top`. SnapshotError if that would be elsewhere."""
    inner = name.removeprefix(top).lstrip("/")
    if not name.startswith(top) or ".." in inner.split("/"):
        raise SnapshotError(f"{name!r} is no name of a file below {top!r}")
    return path / inner


def _stamp(info: dict[str, Any]) -> object:
    keys = ("ETag", "etag", "md5Hash", "mtime", "last_modified", "LastModified", "updated", "created", "size")
    return tuple(str(info[key]) for key in keys if key in info)


def _inode(path: Path) -> tuple[int, int]:
    return (about := path.stat()).st_ino, about.st_size


def _download(local: Path, file: _File) -> None:
    """Put the bytes in the place of a stand-in, whole or not at all."""
    whole = local.with_name(f"{local.name}.copying")
    try:
        _asked(file.url, lambda: _get(file, whole))
        os.replace(whole, local)
    finally:
        whole.unlink(missing_ok=True)
    _FILES.pop(local, None)


def _get(file: _File, local: Path) -> None:
    with file.system.open(file.name, "rb") as source, open(local, "wb") as target:
        shutil.copyfileobj(source, target, 8 << 20)


def _put(system: Any, local: Path, name: str) -> None:
    system.makedirs(system._parent(name), exist_ok=True)
    system.put_file(str(local), name)


def _write_head(local: Path, file: _File) -> None:
    """A file as long as the one there, with its header, and holes for its tensors."""
    head = _asked(file.url, lambda: file.system.cat_file(file.name, start=0, end=min(_HEAD, file.size)))
    length = 8 + int.from_bytes(head[:8], "little")
    if len(head) < length <= min(file.size, 100 << 20):
        head += _asked(file.url, lambda: file.system.cat_file(file.name, start=len(head), end=length))
    with open(local, "wb") as contents:
        contents.write(head[:length] if length <= file.size else head)
        contents.truncate(file.size)
