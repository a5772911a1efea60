"""The command `weight-averaging`: averages of checkpoints, and what is in them."""

import argparse
import contextlib
import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from weight_averaging import __version__
from weight_averaging.averages import SnapshotError
from weight_averaging.cli import average, extract, inspect, merge, plan
from weight_averaging.interrupts import importing, interrupt, status_of

COMMANDS = {"average": average, "merge": merge, "extract": extract, "inspect": inspect, "plan": plan}
EXAMPLES = """\
for example:
  weight-averaging inspect runs/mine                        what is there, and what can be averaged
  weight-averaging average runs/mine --lawa window=20 --out average.safetensors
  weight-averaging merge a.safetensors b.safetensors --out both.safetensors

`weight-averaging COMMAND --help` has the rest. Nothing that is read can run code.
"""


class Parser(argparse.ArgumentParser):
    """Ends with one line after a wrong argument: what is wrong, and an example that runs."""

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"/--\w*_\w*", "", message)  # other spellings of one argument
        example = (self.epilog or "").splitlines()[1:2]
        hint = f"; for example: {example[0].strip().partition('  ')[0]}" if example else ""
        print(f"error: {message}{hint}; `{self.prog} --help` has the rest", file=sys.stderr)
        sys.exit(2)


def parser() -> argparse.ArgumentParser:
    made = Parser(
        prog="weight-averaging",
        description="Averages of the checkpoints of a training run, and what averaging costs during one.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        about = module.__doc__ or ""
        command = commands.add_parser(
            name,
            help=about.partition("\n")[0],
            description=about,
            epilog=module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Parse and run; a fault is one line on stderr and the exit status 2, Ctrl-C one line and 130, SIGTERM 143."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError, ValueError):  # a pipe that was opened for reading too, say
                stream.reconfigure(errors="backslashreplace")  # names of files may be no text
    words = list(sys.argv[1:] if argv is None else argv)
    before = None
    try:
        with contextlib.suppress(ValueError):  # not in the main thread, which alone is told
            before = signal.signal(signal.SIGTERM, interrupt)
        if any("://" in word for word in words):
            _check_torch()
            from weight_averaging.cli.remote import run_with_urls

            run_with_urls(words, parser())
        else:
            args = parser().parse_args(words)
            if args.command != "plan":
                _check_torch()
            args.run(args)
    except BrokenPipeError:  # whoever read the output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except (SnapshotError, ValueError, OSError) as error:
        print(f"error: {error}".replace("\n", "\\n"), file=sys.stderr)
        sys.exit(2)
    except MemoryError as error:
        print(f"error: there is not enough memory: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as end:
        print("\nstopped: nothing was written, and the same command starts anew", file=sys.stderr)
        sys.exit(status_of(end))
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _check_torch() -> None:
    with importing():
        try:
            with warnings.catch_warnings():  # torch warns where NumPy is not installed, and nothing here needs it
                warnings.filterwarnings("ignore", "Failed to initialize NumPy")
                import torch
        except ImportError:
            raise SnapshotError("checkpoints are read with torch: pip install 'weight-averaging[torch]'") from None
        import_module("weight_averaging.offline")
    torch.set_num_threads(1)  # the work is bound by memory
