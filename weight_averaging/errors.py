"""Errors that a user can mend."""


class UsageError(ValueError):
    """Something that the user can put right, in one line: what is wrong and what to do. Shown without a traceback."""
