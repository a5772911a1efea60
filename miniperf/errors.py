"""Errors of the disk, as what a user can mend."""

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path

from weight_averaging.errors import UsageError

_SPACE, _RIGHTS = "make room there", "grant the right to it"
_STORAGE = {
    errno.ENOSPC: _SPACE, errno.EDQUOT: _SPACE, errno.EFBIG: _SPACE, errno.EACCES: _RIGHTS, errno.EPERM: _RIGHTS,
    errno.EROFS: "make it writable", errno.EIO: "mend the disk",
}  # fmt: skip


@contextlib.contextmanager
def storage_errors(path: Path, size: Callable[[], int] | None = None) -> Iterator[None]:
    """A full disk, a read-only folder and the like become a UsageError that names the file and what to do.

    Args:
        path: what is written, for errors that do not know.
        size: gives the bytes that it takes, where that can be told.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _STORAGE:
            raise
        file = str(error.filename or path).replace(".partial_", "")  # by the name that it was to have
        needed = "" if size is None else f" (it takes {size() / 1e6:.1f} MB)"
        raise UsageError(
            f"{file}: {error.strerror}; {_STORAGE[error.errno]}{needed} and go on with --resume_last_run"
        ) from None
