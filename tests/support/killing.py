"""Ends of processes by SIGKILL, chosen by moment or by place."""

import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

PROJECT = f"{Path(__file__).parents[2]}{os.sep}"


def in_a_process(function: Callable[..., object], *arguments: object) -> Any:
    """Started. It begins with all that is imported here: many kills in little time."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def newest(folder: Path) -> int:
    """The step of the last checkpoint, 0 without one: it must not go down, since going on from zero ends alike."""
    return max((int(path.name.removeprefix("checkpoint_")) for path in folder.glob("checkpoint_*")), default=0)


def die() -> None:
    """What `kill -9` does: no handler, no clean-up, no flush."""
    os.kill(os.getpid(), signal.SIGKILL)


class Lines:
    """Counts the lines of this project that run inside the calls of a function; at line `last`, the process dies.

    Args:
        owner, name: the function is replaced there, for good: use it in a process of its own.
        counts: of a call's arguments, whether it counts.
        last: None to count only.
        mark: told the function that the process dies in.
    """

    def __init__(
        self,
        owner: Any,
        name: str,
        counts: Callable[..., bool],
        last: int | None = None,
        mark: Callable[[str], object] = print,
    ) -> None:
        self.seen = 0
        original = getattr(owner, name)

        def trace(frame: FrameType, event: str, _: object) -> Any:
            if not frame.f_code.co_filename.startswith(PROJECT):
                return None  # nor are its lines traced
            if event == "line":
                self.seen += 1
                if self.seen == last:
                    mark(f"{frame.f_code.co_qualname}, line {frame.f_lineno}")
                    die()
            return trace

        def watched(*args: Any, **kwargs: Any) -> Any:
            if not counts(*args, **kwargs):
                return original(*args, **kwargs)
            sys.settrace(trace)  # of this thread only
            try:
                return original(*args, **kwargs)
            finally:
                sys.settrace(None)

        setattr(owner, name, watched)


def die_writing(call: int, share: float, mark: Callable[[str], object]) -> None:
    """In the `call`-th torch.save from now on the process dies when that share of the bytes is in the file."""
    original, calls = torch.save, 0

    def save(contents: Any, file: Any) -> None:
        nonlocal calls
        calls += 1
        if calls < call:
            return original(contents, file)
        buffer = io.BytesIO()
        original(contents, buffer)
        file.write(buffer.getvalue()[: int(share * buffer.tell())])
        file.flush()
        mark(file.name)
        die()

    torch.save = save
