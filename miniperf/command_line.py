"""What the commands share: a wrong or missing flag ends in one line, and so does Ctrl-C."""

import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from absl import flags

from weight_averaging import interrupts
from weight_averaging.errors import UsageError


def parsed(argv: list[str]) -> list[str]:
    """The flags into absl's FLAGS, for `app.run(main, flags_parser=parsed)`. Returns what is no flag."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        said = " ".join(str(error).split())
        if names := re.findall(r"Flag --(\w+) must have a value other than None", said):
            said = str(missing(names))
        print(f"error: {said}", file=sys.stderr)
        sys.exit(2)


def missing(names: Sequence[str]) -> UsageError:
    """The error of flags that must be given: what each is for, and the first example of the command that runs."""
    lines = [f"--{name} must be given ({_inside(flags.FLAGS[name].help)})" for name in names]
    if example := _example(sys.modules["__main__"].__doc__ or ""):
        lines.append(f"for example: {example}")
    return UsageError("; ".join(lines))


def _inside(text: str) -> str:
    """A sentence as a part of another."""
    text = " ".join(text.split())
    text = text if text.endswith("...") else text.removesuffix(".")
    return text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text


def _example(doc: str) -> str:
    """The first command in a docstring, in one line."""
    found = re.search(r"^    (python -m .*(?:(?<=\\)\n.*)*)", doc, re.MULTILINE)
    return " ".join(found[1].replace("\\\n", " ").split()) if found else ""


def stopped(goes_on: str, end: KeyboardInterrupt | None = None) -> NoReturn:
    """The end after Ctrl-C or another interrupt: a line that says how to go on, and the exit status of shells."""
    print(f"\nstopped: {goes_on}", file=sys.stderr)
    sys.exit(interrupts.status_of(end or KeyboardInterrupt()))
