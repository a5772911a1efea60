"""LAWA and EMA as pure functions over pytrees. Needs jax alone; docs/jax.md shows it in a training loop."""

from weight_averaging.jax.averager import Averager
from weight_averaging.jax.exponential import EMAState, ema, ema_for_run
from weight_averaging.jax.window import LAWAState, lawa, lawa_for_run

__all__ = [
    "Averager",
    "EMAState",
    "LAWAState",
    "ema",
    "ema_for_run",
    "lawa",
    "lawa_for_run",
]
