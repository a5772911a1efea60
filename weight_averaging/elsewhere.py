"""Habits of other libraries: an argument, a name or a call that there is not gets one line that says what there is."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

# What arguments are called in other libraries (docs/migrating.md).
ARGUMENTS = {
    "beta": "decay",
    "momentum": "decay",
    "alpha": "decay",
    "tau": "decay",
    "update_every": "interval",
    "update_interval": "interval",
    "every_n_steps": "interval",
    "window_size": "window",
    "k": "window",
    "update_after_step": "start",
    "use_buffers": "buffers",
    "device": "placement",
    "total_steps": "total_updates",
    "max_steps": "total_updates",
    "num_training_steps": "total_updates",
}
# Those that are the weight of the past in one library, and of the new weights in another (mmengine, DDPG).
_EITHER = ("momentum", "alpha", "tau")


class AnswersHabits:
    """Something with names and calls of other libraries that it does not have."""

    _elsewhere: ClassVar[Mapping[str, str]] = {}  # their methods and attributes: what to write here
    _called: ClassVar[str] = ""  # what to write in the place of a call

    if not TYPE_CHECKING:  # which knows what there is

        def __getattr__(self, name: str) -> Any:
            hint = f": {self._elsewhere[name]} (docs/migrating.md)" if name in self._elsewhere else ""
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}", name=name, obj=self)

        def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
            raise TypeError(f"{type(self).__name__!r} object is not callable: {self._called} (docs/migrating.md)")


def no_argument(function: str, name: str, known: Iterable[str]) -> TypeError:
    """The error of an argument that there is not, which names the nearest that there is."""
    names = list(known)
    ours = ARGUMENTS.get(name)
    near = [ours] if ours in names else difflib.get_close_matches(name, names, 1)
    either = f" Where {name} is the weight of the new weights, and small, it is 1 - {name}" if name in _EITHER else ""
    hint = f": did you mean {near[0]}?" + either * (near == ["decay"]) if near else f"; it takes {', '.join(names)}"
    return TypeError(f"{function} has no argument {name}{hint}")


def checks_arguments(chooses: str = "") -> Callable[[F], F]:
    """Let a function refuse what does not fit its signature in one line that says what it takes.

    Args:
        chooses: the call that chooses the arguments which are needed.
    """

    def decorated(function: F) -> F:
        signature = inspect.signature(function)
        takes = "; it takes " + ", ".join(f"{name}=" for name in signature.parameters)

        @functools.wraps(function)
        def checked(*args: Any, **given: Any) -> Any:
            for name in given:
                if name not in signature.parameters:
                    raise no_argument(function.__name__, name, signature.parameters)
            try:
                signature.bind(*args, **given)
            except TypeError as error:
                door = f"; {chooses} chooses them for you" if chooses else ""
                raise TypeError(f"{function.__name__}: {error}{takes}{door}") from None
            return function(*args, **given)

        return checked  # type: ignore[return-value]

    return decorated
