"""What stumbles over a file that is damaged, or made to do harm, said in one line that names it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from weight_averaging.averages import SnapshotError


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Within the block errors of any kind that a file can cause are SnapshotErrors that name it."""
    try:
        yield
    except SnapshotError:
        raise
    except OSError as error:
        raise SnapshotError(f"{path} cannot be read: {error.strerror or error}") from None
    except RecursionError:
        raise SnapshotError(f"{path} is damaged: what it holds is nested too deeply") from None
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # A file may be anything, and what stumbles over it first depends on what it is.
        line = " ".join(str(error).split())[:120]
        raise SnapshotError(f"{path} is damaged: {type(error).__name__}: {line}") from None
