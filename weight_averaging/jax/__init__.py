"""Averages as pure functions over pytrees. Needs jax alone; docs/jax.md shows it in a training loop."""

from weight_averaging.jax.averager import Averager
from weight_averaging.jax.chains import as_gradient_transformation, averaging_state
from weight_averaging.jax.doors import (
    averaging,
    averaging_for,
    choose_lawa,
    ema,
    ema_for_run,
    ema_growing,
    host_lawa,
    lawa,
    lawa_for_run,
)
from weight_averaging.jax.exponential import (
    CompensatedEMAState,
    CompensatedFollowsRateState,
    EMAState,
    FollowsRateState,
)
from weight_averaging.jax.host_window import HostLAWAState
from weight_averaging.jax.several import Several, several
from weight_averaging.jax.window import LAWAState

__all__ = [
    "Averager",
    "CompensatedEMAState",
    "CompensatedFollowsRateState",
    "EMAState",
    "FollowsRateState",
    "HostLAWAState",
    "LAWAState",
    "Several",
    "as_gradient_transformation",
    "averaging",
    "averaging_for",
    "averaging_state",
    "choose_lawa",
    "ema",
    "ema_for_run",
    "ema_growing",
    "host_lawa",
    "lawa",
    "lawa_for_run",
    "several",
]
