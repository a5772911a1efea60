"""Errors that a user can mend."""


class UsageError(ValueError):
    """One line that names the bad value and what is allowed; shown without a traceback."""
