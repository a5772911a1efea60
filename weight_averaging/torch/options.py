"""What LAWA, EMA, Averages and Averager all take, written once: for type checkers, for `help()`, for one clear line."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypedDict, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from weight_averaging.averages.checks import BUFFERS
from weight_averaging.elsewhere import no_argument
from weight_averaging.include_exclude import Choice
from weight_averaging.words import inline

F = TypeVar("F", bound=Callable[..., Any])
Model = nn.Module | Sequence[nn.Module]  # several: stages of one model on this rank


class Options(TypedDict, total=False):
    """See `Averager`."""

    placement: str
    buffers: str
    include: Choice
    exclude: Choice
    check_finite: bool
    process_group: Any
    model_parallel_group: Any
    dtype: torch.dtype | None
    masters: Any


DEFAULTS: Options = {
    "placement": "auto",
    "buffers": "average",
    "include": None,
    "exclude": None,
    "check_finite": True,
    "process_group": None,
    "model_parallel_group": None,
    "dtype": None,
    "masters": None,
}


def completed(options: Options, function: Callable[..., Any]) -> Options:
    """All options, those that are not given with their defaults.

    Raises:
        TypeError: as `check_names`; or a group is none.
        ValueError: `buffers` or `dtype` is none of its values.
    """
    check_names(options, function)
    result: Options = {**DEFAULTS, **options}
    if result["buffers"] not in BUFFERS:
        raise ValueError(f"buffers must be one of {', '.join(BUFFERS)}, not {inline(result['buffers'])}")
    if result["dtype"] not in (None, torch.float32, torch.float64):
        raise ValueError(
            f"dtype must be torch.float32 or torch.float64, not {inline(result['dtype'])}: with fewer bits an average "
            "stalls"
        )
    for name, group in zip(("process_group", "model_parallel_group"), groups_of(result), strict=True):
        if group is not None and not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
            raise TypeError(
                f"{name} must be a torch.distributed.ProcessGroup that this rank is in, as dist.group.WORLD is, "
                f"not {inline(group)}"
            )
    return result


def groups_of(options: Options) -> tuple[Any, Any]:
    """The process groups of replicas, and of ranks with other parts of the model."""
    return options["process_group"], options["model_parallel_group"]


def check_names(options: Options, function: Callable[..., Any]) -> None:
    """Refuse an argument that there is not; the nearest that there is, is named.

    Args:
        function: who was called with these, beside arguments of its own.
    Raises:
        TypeError: in one line.
    """
    for name in options:
        if name not in DEFAULTS:
            known = [n for n in inspect.signature(function).parameters if n not in ("self", "cls", "options")]
            raise no_argument(function.__qualname__.removesuffix(".__init__"), name, known)


def shows_options(function: F) -> F:
    """Let a signature name the options in the place of `**options`: for `help()` and completion at a prompt.

    What does not fit the signature is a TypeError that says what it takes, and which function chooses it.
    """
    signature = inspect.signature(function)
    own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    options = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Options.__annotations__[name]
        )
        for name, default in DEFAULTS.items()
    ]
    name = function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def checked(*args: Any, **given: Any) -> Any:
        check_names({name: None for name in given if name not in signature.parameters}, checked)  # type: ignore[arg-type]
        try:
            signature.bind(*args, **given)
        except TypeError as error:
            first, *keywords = (parameter for parameter in signature.parameters if parameter not in ("self", "cls"))
            takes = ", ".join(f"{keyword}=" for keyword in keywords if keyword != "options")
            door = (
                f"; {name}.for_run({first}, total_updates=...) chooses them for you" if name in ("LAWA", "EMA") else ""
            )
            raise TypeError(f"{name}: {error}; it takes {first}, then by name {takes}{door}") from None
        return function(*args, **given)

    checked.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    return checked  # type: ignore[return-value]
