"""The commands with URLs of buckets in the place of paths: local names stand for them, and are shown as URLs."""

import argparse
import contextlib
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.remote import Remote


def run_with_urls(words: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """Parse and run. SnapshotError, with URLs in its message, whatever is wrong."""
    with (
        Remote() as remote,
        contextlib.redirect_stdout(_Shown(sys.stdout, remote)),
        contextlib.redirect_stderr(_Shown(sys.stderr, remote)),
    ):
        try:
            args = parser.parse_args([remote.local(word) for word in words])
            for path in _read_from(args):
                if line := remote.read(path):
                    print(line)
            out = getattr(args, "out", None)
            if out is not None:
                remote.write(out)
                args.written = functools.partial(remote.upload, out)
            args.run(args)
            if out is not None and (url := remote.shown(str(out))) != str(out):
                place = f'fsspec.filesystem("{url.partition("://")[0]}").get("{url}", "here", recursive=True)'
                print(f"to load it, copy it to this machine first: {place}")
        except (ValueError, OSError) as error:
            raise SnapshotError(remote.said(error)) from None


def _read_from(args: argparse.Namespace) -> list[Path]:
    """What a command reads."""
    weighted = ",".join(getattr(args, "weights", [])).split(",")
    single = [args.checkpoint] if hasattr(args, "checkpoint") else []
    return [*getattr(args, "paths", []), *single, *(Path(item.rpartition("=")[0]) for item in weighted if "=" in item)]


class _Shown:
    """A stream on which URLs are shown."""

    def __init__(self, stream: IO[str], remote: Remote) -> None:
        self._stream, self._remote = stream, remote

    def write(self, text: str) -> int:
        return self._stream.write(self._remote.shown(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
