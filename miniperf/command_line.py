"""What the commands share: a wrong flag ends in one line, and so does Ctrl-C."""

import sys
from typing import NoReturn

from absl import flags


def parsed(argv: list[str]) -> list[str]:
    """The flags into absl's FLAGS, for `app.run(main, flags_parser=parsed)`. Returns what is no flag."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def stopped(goes_on: str) -> NoReturn:
    """The end after Ctrl-C: a line that says how to go on, and the exit status that shells give for it."""
    print(f"\nstopped: {goes_on}", file=sys.stderr)
    sys.exit(130)
