"""What the submissions share: NadamW, learning-rate schedules, averaging from hyperparameters, the update step."""

from .averaging import ema, lawa
from .recipe import Recipe
from .schedules import warmup_constant, warmup_cosine

__all__ = ["Recipe", "ema", "lawa", "warmup_constant", "warmup_cosine"]
