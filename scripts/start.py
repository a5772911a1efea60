"""What the scripts share: flags, then their work, and an error that the user can mend as one line."""

import os
import select
import signal
import sys
from collections.abc import Callable, Sequence

from absl import app

from miniperf import command_line
from weight_averaging import interrupts
from weight_averaging.errors import UsageError


def start(run: Callable[[], None], after: str = "the same command starts anew") -> None:
    """Parse the flags, run and exit: with status 2 after a UsageError, in one line, with 130 after Ctrl-C and 143
    after SIGTERM. What was begun is ended before.

    Args:
        after: what to do then.
    """

    def main(argv: Sequence[str]) -> None:
        try:
            if len(argv) > 1:
                raise UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
            run()
        except UsageError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt as end:
            command_line.stopped(after, end)
        except BrokenPipeError:
            if not _reader_is_gone():
                raise  # it was another pipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)

    interrupts.raise_again()
    interrupts.terminate_alike()
    app.run(main, flags_parser=command_line.parsed)


def _reader_is_gone() -> bool:
    """Whether whoever read the output has seen enough, as `head` does."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in output.poll(0))
