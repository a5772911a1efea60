"""LAWA and EMA as pure functions over pytrees. Needs jax alone; docs/jax.md shows it in a training loop."""

from weight_averaging.jax.averager import Averager
from weight_averaging.jax.exponential import EMAState, ema, ema_for_run
from weight_averaging.jax.host_window import HostLAWAState, choose_lawa, host_lawa
from weight_averaging.jax.window import LAWAState, lawa, lawa_for_run

__all__ = [
    "Averager",
    "EMAState",
    "HostLAWAState",
    "LAWAState",
    "choose_lawa",
    "ema",
    "ema_for_run",
    "host_lawa",
    "lawa",
    "lawa_for_run",
]
