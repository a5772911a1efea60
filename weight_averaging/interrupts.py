"""Ctrl-C while packages are imported. Pure Python.

A package that is being imported may swallow the KeyboardInterrupt, abort in C++, or turn it into another error.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def end_at_once() -> None:
    """From now on Ctrl-C ends the process in one line with status 130; nothing is cleaned up, as nothing was begun.

    Nothing changes where Ctrl-C is ignored, or has a handler of its own.
    """
    if _handler() is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_again() -> None:
    """After `end_at_once`: from now on Ctrl-C is a KeyboardInterrupt again."""
    if _handler() is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def importing() -> Iterator[None]:
    """Ends at once at Ctrl-C within the block, which only imports."""
    end_at_once()
    try:
        yield
    finally:
        raise_again()


def terminate_alike() -> None:
    """From now on SIGTERM is a KeyboardInterrupt too, with its number, so that what was begun is ended and cleaned up.

    Nothing changes where it is ignored, or has a handler of its own.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, interrupt)


def status_of(end: KeyboardInterrupt) -> int:
    """The exit status that shells give for it: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + int(end.args[0] if end.args else signal.SIGINT)


def interrupt(number: int, frame: object) -> None:
    """A handler: the signal is a KeyboardInterrupt with its number."""
    raise KeyboardInterrupt(number)


def _handler() -> object:
    """What Ctrl-C is handled by; None where it cannot be changed, in another thread than the main one."""
    is_main = threading.current_thread() is threading.main_thread()
    return signal.getsignal(signal.SIGINT) if is_main else None


def _end(number: int, frame: object) -> None:
    os.write(2, b"\nstopped: nothing was begun, and the same command starts anew\n")
    os._exit(128 + number)
