"""The one way from AlgoPerf hyperparameters to an average: online in both frameworks, and over saved snapshots."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from weight_averaging.averages import EMA, LAWA, Average, FollowsRate, Growing, Merge
from weight_averaging.averages.checks import BUFFERS as ALL_BUFFERS
from weight_averaging.averages.checks import check_count, check_decay, check_horizon
from weight_averaging.averages.horizon import WINDOW, decay_from_window, interval_and_window

HORIZON = ("averaging_horizon", "averaging_window")
BUFFERS = "averaging_buffers"  # optional, beside either set: "average", "latest" or "recompute"
DEFAULT_BUFFERS = "average"


@dataclass(frozen=True)
class Averaging:
    """What a submission averages, and how that follows from the hyperparameters and the workload's `step_hint`.

    Attributes:
        name: of messages and logs.
        describe: `describe(hyperparameters, step_hint) -> Average`. Raises a ValueError in one line for anything else
            than one full set of hyperparameters.
        hyperparameters: the names of those that it takes, beside `averaging_buffers`.
    """

    name: str
    describe: Callable[[Any, int], Average]
    hyperparameters: frozenset[str]


def always(average: Average) -> Averaging:
    """The same average whatever the hyperparameters: for a description of one's own."""
    return Averaging(type(average).__name__.lower(), lambda hyperparameters, step_hint: average, frozenset())


def buffers_of(hyperparameters: Any) -> str:
    """What becomes of batch-norm statistics. ValueError if it is no such value."""
    buffers: str = getattr(hyperparameters, BUFFERS, DEFAULT_BUFFERS)
    if buffers not in ALL_BUFFERS:
        raise ValueError(f"{BUFFERS} must be one of {', '.join(ALL_BUFFERS)}, not {buffers!r}")
    return buffers


LAWA_NAMES = ("averaging_interval", "averaging_window")
EMA_NAMES = ("averaging_interval", "averaging_decay")
GROWING_NAMES = ("averaging_share", "averaging_interval")
MERGE_NAMES = ("averaging_shape", "averaging_share", "averaging_interval")


def _lawa(hyperparameters: Any, step_hint: int) -> Average:
    values = _given(hyperparameters, LAWA_NAMES)
    interval, window = values.get("averaging_interval"), values["averaging_window"]
    if interval is None:
        interval, window = interval_and_window(values["averaging_horizon"], window, step_hint)
    return LAWA(interval=interval, window=window)


def _ema(hyperparameters: Any, step_hint: int) -> Average:
    values = _given(hyperparameters, EMA_NAMES)
    if "averaging_interval" in values:
        return EMA(interval=values["averaging_interval"], decay=values["averaging_decay"])
    interval, window = interval_and_window(values["averaging_horizon"], values["averaging_window"], step_hint)
    return EMA(interval=interval, decay=decay_from_window(window))


def _growing(hyperparameters: Any, step_hint: int) -> Average:
    return _of_share(Growing, hyperparameters, step_hint)


def _follows_rate(hyperparameters: Any, step_hint: int) -> Average:
    return _of_share(FollowsRate, hyperparameters, step_hint, top_rate=hyperparameters.learning_rate)


def _of_share(kind: Callable[..., Average], hyperparameters: Any, step_hint: int, **further: float) -> Average:
    given = {name: getattr(hyperparameters, name) for name in GROWING_NAMES if hasattr(hyperparameters, name)}
    others = sorted(name for name in NAMES - set(GROWING_NAMES) if hasattr(hyperparameters, name))
    if "averaging_share" not in given or others:
        found = ", ".join([*given, *others]) or "none of them"
        raise ValueError(
            f"a growing average takes averaging_share and, if at all, averaging_interval; this has {found}"
        )
    # As often as an average of the paper's horizon does.
    interval = given.get("averaging_interval", interval_and_window(0.01, WINDOW, step_hint)[0])
    try:
        return kind(share=given["averaging_share"], interval=interval, **further)
    except ValueError as error:
        raise ValueError(f"averaging_{error}") from None


def _merge(hyperparameters: Any, step_hint: int) -> Average:
    given = {name for name in dir(hyperparameters) if name.startswith("averaging_")}
    if given != set(MERGE_NAMES):
        found = ", ".join(sorted(given)) or "none of them"
        raise ValueError(f"a merge takes {', '.join(MERGE_NAMES)}; this has {found}")
    shape, share, interval = (getattr(hyperparameters, name) for name in MERGE_NAMES)
    return Merge(shape=shape, share=share, interval=interval)


def _given(hyperparameters: Any, explicit: Sequence[str]) -> dict[str, Any]:
    values = {name: getattr(hyperparameters, name) for name in sorted(NAMES) if hasattr(hyperparameters, name)}
    if set(values) not in (set(HORIZON), set(explicit)):
        found = ", ".join(values) if values else "none of them"
        raise ValueError(f"give either {' and '.join(HORIZON)}, or {' and '.join(explicit)}; this has {found}")
    for name, value in values.items():
        try:
            _CHECKS[name](value)
        except ValueError as error:
            raise ValueError(f"averaging_{error}") from None
    return values


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "averaging_horizon": check_horizon,
    "averaging_window": lambda value: check_count("window", value),
    "averaging_interval": lambda value: check_count("interval", value),
    "averaging_decay": check_decay,
}
NAMES = frozenset(_CHECKS)

lawa = Averaging("lawa", _lawa, NAMES)  # averaging_window and one of averaging_horizon, averaging_interval
ema = Averaging("ema", _ema, NAMES)  # averaging_horizon and _window, or averaging_interval and _decay
growing = Averaging("growing", _growing, frozenset(GROWING_NAMES))  # averaging_share; averaging_interval if wanted
follows_rate = Averaging("follows_rate", _follows_rate, frozenset(GROWING_NAMES))  # the same; its top is learning_rate
merge = Averaging("merge", _merge, frozenset(MERGE_NAMES))  # of saved snapshots alone
