"""Files that are in place only when they are whole."""

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_LEFT = re.compile(r"\.(partial|replaced)_(.+)~(.+)~(\d+)~[0-9a-f]{8}", re.DOTALL)
_OLD = 600  # seconds
_WORKING_DIRECTORY, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


@contextlib.contextmanager
def replacing(path: Path, sync: bool = True, overwrite: bool = True) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path`, whole and on disk, when the `with` block ends.

    Until then the bytes are in a file of this process alone beside it (`partial_beside`). A kill at any moment leaves
    `path` as it was or as it becomes. An error (a full disk, say) leaves it as it was and nothing else.

    Args:
        path: where; what is there already stays until the end.
        sync: wait until the disk has the bytes, so that a power failure loses nothing either. It takes milliseconds.
        overwrite: whether what is there at the end is replaced.
    Raises:
        OSError: it cannot be written; the error has its name. FileExistsError without `overwrite` where it is there.
    """
    partial = partial_beside(path)
    try:
        with open(partial, "x+b") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        if overwrite:
            os.replace(partial, path)
        else:
            _move_to_free(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # nothing to be removed from a read-only folder
            partial.unlink()
        cause = error.__context__ if isinstance(error, RuntimeError) else error  # torch.save raises one over it
        if isinstance(cause, OSError) and cause.filename in (None, str(partial)):
            raise OSError(cause.errno, cause.strerror, str(path)) from None
        raise


def partial_beside(path: Path) -> Path:
    """A name beside `path` for what is not whole yet, of this process alone: `.partial_NAME~HOST~PROCESS~RANDOM`.

    Files and folders that killed processes of this machine left for the same `path` are removed after ten minutes.
    """
    host = re.sub(r"[^\w.-]", "_", socket.gethostname())[:32]
    name = os.fsdecode(os.fsencode(path.name)[:150])  # of 255 bytes that a name may have
    with contextlib.suppress(OSError):
        for left in path.parent.glob(".*_*~*~*~*"):
            parts = _LEFT.fullmatch(left.name)
            if parts is None or (parts[2], parts[3]) != (name, host) or _runs(int(parts[4])):
                continue
            if parts[1] == "replaced" and not os.path.lexists(path):
                continue  # killed between the two renames of `put_in_place`: nothing else has what was there
            # Containers may share a host's name and not its processes: what is being written to stays.
            if is_old(left):
                remove(left)
    return path.with_name(f".partial_{name}~{host}~{os.getpid()}~{secrets.token_hex(4)}")


def put_in_place(partial: Path, path: Path) -> None:
    """Move a folder, named by `partial_beside`, to the place of what is there, which is removed.

    On Linux the two change places in one step, so that a kill at any moment leaves `path` as it was or as it becomes.
    Where the system or the disk cannot, what was there is `.replaced_NAME~...` for a moment. It is removed once `path`
    is there again.
    """
    if _exchanged(partial, path):
        remove(partial)
        return
    old = partial.with_name(partial.name.replace(".partial_", ".replaced_", 1))
    os.replace(path, old)
    os.replace(partial, path)
    remove(old)


def remove(path: Path) -> None:
    """Delete a file, a folder or a link, whatever it leads to."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _exchanged(one: Path, other: Path) -> bool:
    """Whether two names could be made to change places."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    here = _WORKING_DIRECTORY
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), _EXCHANGE) == 0


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's, say
        return True
    return True


def is_old(path: Path) -> bool:
    """Whether nobody has written to a file, or into a folder, for ten minutes."""
    newest = max(file.stat().st_mtime for file in (path, *path.glob("*")))
    return time.time() - newest > _OLD


def _move_to_free(partial: Path, path: Path) -> None:
    """Rename a file; FileExistsError where `path` is there, also if it came a moment ago."""
    try:
        os.link(partial, path)
    except FileExistsError:
        raise FileExistsError(errno.EEXIST, "there meanwhile, and not written over", str(path)) from None
    except OSError:  # a file system without links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, "there meanwhile, and not written over", str(path)) from None
        os.replace(partial, path)
    else:
        partial.unlink()
