"""What every script of one job does: flags, then the job, and an error that the user can mend as one line."""

import sys
from collections.abc import Callable, Sequence

from absl import app


def start(run: Callable[[], None], usage_error: type[Exception]) -> None:
    """Parse the flags, run and exit: with status 2 after a `usage_error`, which is printed without a traceback."""

    def main(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        try:
            run()
        except usage_error as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    app.run(main)
