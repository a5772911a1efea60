"""Numbers and names in messages. Pure Python."""


def fault_of(error: BaseException) -> str:
    """What went wrong in a user's code, in one line.

    >>> fault_of(SystemExit(3)), fault_of(ValueError("two\\n lines"))
    ('SystemExit: 3', 'ValueError: two lines')
    """
    return " ".join(f"{type(error).__name__}: {error}".split())


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
