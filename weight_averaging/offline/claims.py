"""One writer to a folder at a time."""

import errno
from pathlib import Path
from typing import BinaryIO

from weight_averaging.averages import SnapshotError

try:
    import fcntl
except ImportError:  # Windows: a claim holds within one process only
    fcntl = None  # type: ignore[assignment]

_HERE: set[Path] = set()  # claimed by this process, whose own writers a lock does not keep apart


class FolderClaim:
    """A claim to be the only one that writes into a folder, from `take` to `give_up` or the end of the process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._file: BinaryIO | None = None

    def take(self) -> None:
        """Claim the folder, if it is not yet.

        Raises:
            SnapshotError: another writer has it.
        """
        if self._file is not None:
            return
        file = None
        if self._folder not in _HERE:
            file = open(self._folder / ".lock", "wb")  # noqa: SIM115 - closed by give_up
        if file is None or not _locked(file):
            raise SnapshotError(
                f"another SnapshotWriter is writing into {self._folder}: make one on a single rank, or give each a "
                "folder of its own"
            )
        for left in self._folder.glob(".partial_*"):  # by a killed writer, since nobody else writes now
            left.unlink(missing_ok=True)
        _HERE.add(self._folder)
        self._file = file

    def give_up(self) -> None:
        """Let others write."""
        if self._file is not None:
            self._file.close()  # and with it the lock
            self._file = None
            _HERE.discard(self._folder)


def _locked(file: BinaryIO) -> bool:
    """Whether no other process has the file locked; now this one has, where the file system knows locks."""
    if fcntl is not None:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                file.close()
                return False
    return True
