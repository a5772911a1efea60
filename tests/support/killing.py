"""Ends of processes by SIGKILL, chosen by moment or by place."""

import io
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
TWO, DELETING = ("os.rename", "os.link"), ("os.remove", "os.rmdir")
CHANGES = ("open", "os.mkdir", *TWO, *DELETING)
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


def die_at_change(folder: Path, last: int | None = None, but: str = "~none~") -> list[str]:
    """The process dies at the `last`-th change of what is below a folder. Use it in a process of its own.

    Changes are files opened for writing, twice each (before, and while they are empty), renamed and deleted ones, and
    folders made and deleted.

    Args:
        last: from 1; None to count only.
        but: what has this in its name does not count.
    Returns:
        A list that grows by what each change is.
    """
    seen: list[str] = []
    home = os.path.join(os.path.abspath(folder), "")

    def change(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES:
            return
        paths = [os.fsdecode(path) for path in arguments[: 2 if event in TWO else 1] if isinstance(path, str | bytes)]
        at = next((fd for fd in arguments[1:] if event in DELETING and isinstance(fd, int) and fd >= 0), None)
        where = os.readlink(f"/proc/self/fd/{at}") if at is not None else os.getcwd()
        if not any(os.path.join(where, path).startswith(home) and but not in path for path in paths):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        for moment in (event, "opened") if event == "open" else (event,):
            seen.append(f"{moment} {' '.join(map(os.path.basename, paths))}")
            if len(seen) == last:
                if moment == "opened":
                    os.close(os.open(paths[0], os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
                die()

    sys.addaudithook(change)
    return seen


def killed_at_every_change(
    home: Path, function: Callable[..., object], *arguments: object, but: str = "~none~"
) -> Iterator[str]:
    """Runs a function in processes of their own, and kills each at another change of what is below a folder.

    The folder is each time as it was, and as the killed process left it when a change is yielded. Of files that
    have `but` in their names no change counts.
    """
    begin = home.with_name(f"{home.name} at the beginning")
    shutil.copytree(home, begin)
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def work(last: int | None) -> None:
        seen = die_at_change(home, last, but)
        function(*arguments)
        sender.send(list(seen))

    whole = in_a_process(work, None)
    changes = receiver.recv() if receiver.poll(300) else []
    whole.join()
    assert changes
    assert whole.exitcode == 0
    for last, change in enumerate(changes, start=1):
        shutil.rmtree(home)
        shutil.copytree(begin, home)
        process = in_a_process(work, last)
        process.join()
        assert process.exitcode == -signal.SIGKILL, change
        yield change


def grow_old(home: Path) -> None:
    """As if all that is there had been left long ago."""
    for path in home.rglob("*"):
        os.utime(path, (0, 0))


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
