"""`include=` and `exclude=`: tensors chosen by name, pattern or predicate. Pure Python."""

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

Choice = str | Iterable[str] | Callable[[str, Any], bool] | None


class Filter:
    """Whether a tensor is chosen.

    Args:
        argument: `include` or `exclude`, for errors.
        choice: names of tensors or of modules (for all that is below), patterns with `*`, `?` and `[...]`, or a
            function of name and tensor. Names are those of the plain model, without wrappers. None chooses nothing.
    Raises:
        TypeError: it is something else.

    >>> chosen = Filter("include", ["teacher", "*.running_mean"])
    >>> [chosen(name, None) for name in ("teacher.fc.weight", "teachers", "bn.running_mean")]
    [True, False, True]
    """

    def __init__(self, argument: str, choice: Choice) -> None:
        self._argument = argument
        self._predicate = choice if callable(choice) else None
        self._patterns: list[str] = []
        if isinstance(choice, str):
            self._patterns = [choice]
        elif choice is not None and not callable(choice):
            self._patterns = list(choice) if isinstance(choice, Iterable) else [None]
        if bad := [pattern for pattern in self._patterns if not isinstance(pattern, str)]:
            given = repr(choice) if bad == [None] else repr(bad[0])
            raise TypeError(f"{argument} takes names, patterns or a function of name and tensor, not {given}")

    def __call__(self, name: str, tensor: Any) -> bool:
        if self._predicate is not None:
            return bool(self._predicate(name, tensor))
        return any(_matches(name, pattern) for pattern in self._patterns)

    def check(self, names: Sequence[str]) -> None:
        """A ValueError if a pattern chooses none of these names."""
        for pattern in self._patterns:
            if not any(_matches(name, pattern) for name in names):
                near = get_close_matches(pattern, names, 1, 0.3) or list(names)[:1]
                hint = f"; there is {near[0]}" if near else ""
                raise ValueError(f"{self._argument}: no tensor is called, or matches, {pattern!r}{hint}")


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or name.startswith(pattern + ".")
