"""Numbers and names in messages. Pure Python."""


def counted(number: int, one: str, several: str = "") -> str:
    """How many of what.

    >>> counted(1, "copy", "copies"), counted(20, "snapshot")
    ('1 copy', '20 snapshots')
    """
    return f"{number} {one if number == 1 else several or one + 's'}"
