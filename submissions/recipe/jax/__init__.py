"""The recipe in JAX: base optimizers, the update step, averaging."""

from ..averaging import ema, growing, lawa
from ..schedules import warmup_constant, warmup_cosine, warmup_stable_decay
from .optimizers import adamw, ademamix, nadamw
from .recipe import Recipe

__all__ = [
    "Recipe", "adamw", "ademamix", "ema", "growing", "lawa", "nadamw",
    "warmup_constant", "warmup_cosine", "warmup_stable_decay",
]  # fmt: skip
