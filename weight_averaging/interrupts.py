"""Ctrl-C and SIGTERM, also while packages are imported. Pure Python.

A package that is being imported may swallow the KeyboardInterrupt, abort in C++, or turn it into another error.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def end_at_once() -> None:
    """From now on Ctrl-C ends the process in one line with status 130; nothing is cleaned up, as nothing was begun.

    So does SIGTERM after `terminate_alike`, with status 143. Nothing changes where a signal is ignored, or has a
    handler of its own.
    """
    for number, handler in _ours():
        if _handler(number) is handler:
            signal.signal(number, _end)


def raise_again() -> None:
    """After `end_at_once`: from now on both signals are a KeyboardInterrupt again."""
    for number, handler in _ours():
        if _handler(number) is _end:
            signal.signal(number, handler)


@contextmanager
def importing() -> Iterator[None]:
    """Ends at once at a signal within the block, which only imports."""
    end_at_once()
    try:
        yield
    finally:
        raise_again()


def terminate_alike() -> None:
    """From now on SIGTERM is a KeyboardInterrupt too, with its number, so that what was begun is ended and cleaned up.

    Nothing changes where it is ignored, or has a handler of its own.
    """
    if _handler(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, interrupt)


def status_of(end: KeyboardInterrupt) -> int:
    """The exit status that shells give for it: 130 after Ctrl-C, 143 after SIGTERM.

    What was interrupted half-way, such as a zip file being opened, complains no more when it is dropped.
    """
    sys.unraisablehook = lambda _: None
    return 128 + int(end.args[0] if end.args else signal.SIGINT)


def interrupt(number: int, frame: object) -> None:
    """A handler: the signal is a KeyboardInterrupt with its number."""
    raise KeyboardInterrupt(number)


def _ours() -> list[tuple[int, Any]]:
    """The signals, and the handlers that make them a KeyboardInterrupt."""
    return [(signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, interrupt)]


def _handler(number: int) -> object:
    """What a signal is handled by; None where it cannot be changed, in another thread than the main one."""
    is_main = threading.current_thread() is threading.main_thread()
    return signal.getsignal(number) if is_main else None


def _end(number: int, frame: object) -> None:
    os.write(2, b"\nstopped: nothing was begun, and the same command starts anew\n")
    os._exit(128 + number)
