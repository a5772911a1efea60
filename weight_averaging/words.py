"""Numbers and names in messages. Pure Python."""

from collections.abc import Sequence


def fault_of(error: BaseException) -> str:
    """What went wrong in a user's code, in one line.

    >>> fault_of(SystemExit(3)), fault_of(ValueError("two\\n lines"))
    ('SystemExit: 3', 'ValueError: two lines')
    """
    return " ".join(f"{type(error).__name__}: {error}".split())


def inline(value: object) -> str:
    """What somebody gave, in one line: its type, where it takes more than a line to show.

    >>> inline("one"), inline([0] * 99)
    ("'one'", 'a list')
    """
    text = repr(value)
    return text if len(text) <= 80 and "\n" not in text else with_article(type(value).__name__)


def between(low: int, high: int, noun: str) -> str:
    """Say a range of counts.

    >>> between(2, 5, "seed"), between(1, 1, "seed")
    ('2 to 5 seeds', '1 seed')
    """
    return counted(low, noun) if low == high else f"{low} to {counted(high, noun)}"


def counted(number: int, one: str, several: str = "") -> str:
    """How many of what.

    >>> counted(1, "copy", "copies"), counted(20, "snapshot")
    ('1 copy', '20 snapshots')
    """
    return f"{number} {one if number == 1 else several or one + 's'}"


def some(names: Sequence[str]) -> str:
    """The first of them.

    >>> some(["a", "b", "c", "d"]), some(["a"]), some([])
    ('a, b, c, ...', 'a', 'none')
    """
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "none"


def with_article(name: str) -> str:
    """A class by name.

    >>> with_article("EMA"), with_article("LAWA")
    ('an EMA', 'a LAWA')
    """
    return f"an {name}" if name[0].upper() in "AEIOU" else f"a {name}"
