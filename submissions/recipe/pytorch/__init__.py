"""The recipe in PyTorch: base optimizers, learning-rate schedules, the update step, averaging."""

from ..averaging import ema, lawa
from .optimizers import adamw, nadamw
from .recipe import Recipe
from .schedules import warmup_constant, warmup_cosine

__all__ = ["Recipe", "adamw", "ema", "lawa", "nadamw", "warmup_constant", "warmup_cosine"]
