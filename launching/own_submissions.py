"""The submissions of this repository, by name."""

from pathlib import Path

from miniperf import frameworks
from weight_averaging.errors import UsageError

ROOM = Path("submissions")


def path_of(name: str, framework: str, flag: str = "submission", root: Path = Path()) -> Path:
    """The file of a submission. UsageError for an unknown one, naming those there are.

    Args:
        flag: the one that `name` is from.
        root: of the repository; by default the path is relative to it.
    """
    path = root / ROOM / framework / name / "submission.py"
    if not path.is_file():
        others = [other for other in frameworks.NAMES if (root / ROOM / other / name / "submission.py").is_file()]
        only = f" in {framework}: it is there in {' and '.join(others)} alone" if others else ""
        raise UsageError(f"--{flag}={name} is unknown{only}; choose from {', '.join(names(framework, root))}")
    return path


def names(framework: str, root: Path = Path()) -> list[str]:
    """Of all submissions in a framework, in alphabetical order."""
    return sorted(path.parent.name for path in (root / ROOM / framework).glob("*/submission.py"))
