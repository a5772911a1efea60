"""Errors that a reader of logs can mend."""


class UsageError(ValueError):
    """One line that names the bad value and the fix; shown without a traceback."""
