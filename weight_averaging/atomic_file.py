"""Files that are in place only when they are whole."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path, sync: bool = True) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path`, whole and on disk, when the `with` block ends.

    Until then the bytes are in `.partial_<name>` beside it. A kill at any moment leaves `path` as it was or as it
    becomes; an error (a full disk, say) leaves it as it was and nothing else.

    Args:
        path: where; what is there already stays until the end.
        sync: wait until the disk has the bytes, so that a power failure loses nothing either. It takes milliseconds.
    Raises:
        OSError: it cannot be written; the error has its name.
    """
    partial = path.with_name(f".partial_{path.name}")
    try:
        with open(partial, "wb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # nothing to be removed from a read-only folder
            partial.unlink()
        cause = error.__context__ if isinstance(error, RuntimeError) else error  # torch.save raises one over it
        if isinstance(cause, OSError) and cause.filename in (None, str(partial)):
            raise OSError(cause.errno, cause.strerror, str(path)) from None
        raise
