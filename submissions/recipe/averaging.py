"""From AlgoPerf hyperparameters to the settings of an average."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from weight_averaging.averages.checks import BUFFERS as ALL_BUFFERS
from weight_averaging.averages.checks import check_count, check_decay, check_horizon
from weight_averaging.averages.horizon import decay_from_window, interval_and_window

HORIZON = ("averaging_horizon", "averaging_window")
NAMES = {*HORIZON, "averaging_interval", "averaging_decay"}
BUFFERS = "averaging_buffers"  # optional, beside either set: "average", "latest" or "recompute"
DEFAULT_BUFFERS = "average"


@dataclass(frozen=True)
class Averaging:
    """What is averaged, and how its settings follow from the hyperparameters and the workload's `step_hint`.

    Attributes:
        name: "lawa" or "ema", of which each framework has an averager.
        settings: interval, and window or decay. Raises a ValueError in one line for anything else than one full set of
            hyperparameters.
    """

    name: str
    settings: Callable[[Any, int], dict[str, Any]]

    def arguments(self, hyperparameters: Any, step_hint: int) -> dict[str, Any]:
        """The settings, and what becomes of `buffers`. ValueError as `settings`."""
        buffers = getattr(hyperparameters, BUFFERS, DEFAULT_BUFFERS)
        if buffers not in ALL_BUFFERS:
            raise ValueError(f"{BUFFERS} must be one of {', '.join(ALL_BUFFERS)}, not {buffers!r}")
        return {**self.settings(hyperparameters, step_hint), "buffers": buffers}


def _lawa_settings(hyperparameters: Any, step_hint: int) -> dict[str, Any]:
    values = _given(hyperparameters, ("averaging_interval", "averaging_window"))
    interval, window = values.get("averaging_interval"), values["averaging_window"]
    if interval is None:
        interval, window = interval_and_window(values["averaging_horizon"], window, step_hint)
    return {"interval": interval, "window": window}


def _ema_settings(hyperparameters: Any, step_hint: int) -> dict[str, Any]:
    values = _given(hyperparameters, ("averaging_interval", "averaging_decay"))
    if "averaging_interval" in values:
        return {"interval": values["averaging_interval"], "decay": values["averaging_decay"]}
    interval, window = interval_and_window(values["averaging_horizon"], values["averaging_window"], step_hint)
    return {"interval": interval, "decay": decay_from_window(window)}


lawa = Averaging("lawa", _lawa_settings)  # averaging_window and one of averaging_horizon, averaging_interval
ema = Averaging("ema", _ema_settings)  # averaging_horizon and _window, or averaging_interval and _decay


def _given(hyperparameters: Any, explicit: tuple[str, str]) -> dict[str, Any]:
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
