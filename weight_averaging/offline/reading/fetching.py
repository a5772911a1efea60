"""Files on their way from the disk into memory while others are worked on."""

import contextlib
import ctypes
import functools
import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

_PIECE = 8 << 20  # bytes that are asked for at a time
_MOST = 1 << 30  # of a file: more might push out of memory what is being worked on


@contextlib.contextmanager
def fetching(paths: Sequence[Path]) -> Iterator[None]:
    """Within the block the system is asked to read these safetensors files, or those in these folders.

    Nothing depends on it: what cannot be asked for is read when it is used. Other files hold more than weights.
    """
    end = threading.Event()
    paths = [path for path in paths if path.is_dir() or path.suffix == ".safetensors"]
    thread = threading.Thread(target=_fetch, args=(paths, end), daemon=True)
    if paths and hasattr(os, "posix_fadvise"):
        thread.start()
    try:
        yield
    finally:
        end.set()
        if thread.ident is not None:
            thread.join()


def _fetch(paths: Sequence[Path], end: threading.Event) -> None:
    for path in paths:
        for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
            with contextlib.suppress(OSError):
                descriptor = os.open(file, os.O_RDONLY)
                try:
                    for start in range(0, min(os.fstat(descriptor).st_size, _MOST), _PIECE):
                        if end.is_set():
                            return
                        os.posix_fadvise(descriptor, start, _PIECE, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(descriptor)


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def fetch(tensor: Tensor) -> None:
    """The system is asked to read the pages of a tensor that is mapped. It is no error if that cannot be asked for."""
    if hasattr(mmap, "MADV_WILLNEED") and tensor.is_contiguous() and tensor.nbytes:
        start = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
        size = tensor.data_ptr() + tensor.nbytes - start
        _library().madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_WILLNEED)
