"""Averages as flags describe them: `--lawa window=20,interval=64`, and one of your own by its module and class.

Fields are read by their annotations. Values with colons between are multiplied out.
"""

import argparse
import contextlib
import importlib
import itertools
import os
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from weight_averaging.averages import EMA, LAWA, Average, FollowsRate, Growing, Merge, Power, SnapshotError, Tail
from weight_averaging.words import fault_of

KINDS: dict[str, type[Average]] = {
    "lawa": LAWA,
    "ema": EMA,
    "tail": Tail,
    "growing": Growing,
    "follows-rate": FollowsRate,
    "power": Power,
    "merge": Merge,
}
_SIMPLE = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def add_averages(parser: argparse.ArgumentParser) -> None:
    for kind, made in KINDS.items():
        metavar = ",".join(f"{name}=..." for name in _settings(made))
        parser.add_argument(f"--{kind}", action="append", default=[], metavar=metavar)
    parser.add_argument("--average", action="append", default=[], metavar="MODULE:CLASS,FIELD=...")


def averages_of(args: argparse.Namespace) -> list[Average]:
    """What the flags ask for, in their order by kind, each once. SnapshotError if one cannot be understood."""
    known = [
        one
        for kind in KINDS
        for text in getattr(args, kind.replace("-", "_"))
        for one in _parsed(KINDS[kind], text, kind, text)
    ]
    return list(dict.fromkeys([*known, *(one for text in args.average for one in _own(text))]))


def _own(text: str) -> list[Average]:
    """Those of a user's class."""
    place, _, settings = text.partition(",")
    module, _, name = place.partition(":")
    if not module or not name:
        raise SnapshotError(f"--average {text}: expected MODULE:CLASS,FIELD=..., as mine:Polynomial,eta=3")
    found = getattr(imported(module, f"--average {text}"), name, None)
    if found is None:
        raise SnapshotError(f"--average {text}: {module} has no class {name}")
    if not (isinstance(found, type) and issubclass(found, Average)):
        raise SnapshotError(f"--average {text}: {name} is no subclass of weight_averaging.averages.Average")
    made = _parsed(found, settings, "average", text)
    for average in made:  # what it lacks is said before anything is read
        try:
            average.coefficients(max(average.needed, 2) if average.is_recursive else average.needed)
            with contextlib.suppress(SnapshotError):
                average.members([], 0)
        except NotImplementedError as error:
            raise SnapshotError(f"--average {text}: {error}") from None
        except (Exception, SystemExit) as error:  # the class is the user's: any fault of it
            raise SnapshotError(f"--average {text}: {name} failed: {fault_of(error)}") from error
    return made


def imported(name: str, flag: str) -> object:
    """A user's module, from the current folder or installed. SnapshotError, with the flag, if it cannot be imported."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # the module is the user's: any fault of it
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise SnapshotError(f"{flag}: there is no module {name}, in this folder or installed") from None
        raise SnapshotError(f"{flag}: {name} cannot be imported: {fault_of(error)}") from error
    finally:
        sys.path.remove(here)


def _settings(kind: type[Average]) -> list[str]:
    own, common = fields(kind)[2:], fields(kind)[:2]  # interval and start last
    return [field.name for field in (*own, *common) if field.init]


def _parsed(kind: type[Average], settings: str, flag: str, text: str) -> list[Average]:
    """The averages of a kind with these settings, `text` being the whole flag."""
    makes: Any = kind
    names = _settings(kind)
    try:
        types = get_type_hints(kind)
    except (NameError, TypeError) as error:
        raise SnapshotError(f"--{flag} {text}: the fields' annotations cannot be read: {error}") from None
    given: dict[str, list[Any]] = {}
    for name, values in _fields(settings, types):
        if name not in names or not values:
            expected = ", ".join(f"{name}=..." for name in names)
            field = f"{name}={values}" if values else name
            raise SnapshotError(f"--{flag} {text}: expected {expected}, not {field!r}")
        if name in given:
            raise SnapshotError(f"--{flag} {text}: {name}=... is there twice")
        try:
            given[name] = [_value(types[name], value) for value in values.split(":")]
        except ValueError as error:
            raise SnapshotError(f"--{flag} {text}: {name} must be {error}") from None
    required = [f.name for f in fields(kind) if f.init and f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in required if name not in given]:
        raise SnapshotError(f"--{flag} {text}: {missing[0]}=... is missing")
    try:
        return [makes(**dict(zip(given, values))) for values in itertools.product(*given.values())]
    except (TypeError, ValueError) as error:
        raise SnapshotError(f"--{flag} {text}: {error}") from None


def _fields(settings: str, types: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, values) of `a=1:2,b=3`; what follows a comma without a name goes on with a tuple, as in `b=.5,.5`."""
    found: list[tuple[str, str]] = []
    for part in settings.split(",") if settings else ():
        name, equals, values = part.partition("=")
        if not equals and found and get_origin(types.get(found[-1][0])) is tuple:
            name, values = found[-1][0], f"{found.pop()[1]},{part}"
        found.append((name, values))
    return found


def _value(wanted: Any, text: str) -> Any:
    """The value of an annotated field. ValueError, in words that follow "must be", if it is none."""
    origin, inner = get_origin(wanted), [one for one in get_args(wanted) if one not in (NoneType, Ellipsis)]
    if origin in (Union, UnionType):
        return _first(inner, text)
    if origin is tuple and len(inner) == 1:
        return tuple(_value(inner[0], part) for part in text.split(","))
    if wanted not in _SIMPLE:
        raise ValueError(f"{wanted}, which no flag can give")
    try:
        return {"true": True, "false": False}[text.lower()] if wanted is bool else wanted(text)
    except (KeyError, ValueError):
        raise ValueError(f"{_SIMPLE[wanted]}, not {text!r}") from None


def _first(kinds: Sequence[Any], text: str) -> Any:
    """The value by the first of these annotations that it can be of."""
    for kind in kinds[:-1]:
        with contextlib.suppress(ValueError):
            return _value(kind, text)
    return _value(kinds[-1], text)
