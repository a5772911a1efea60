"""The recipe in JAX: base optimizers, the update step, averaging."""

from ..averaging import ema, follows_rate, growing, lawa
from ..schedules import warmup_constant, warmup_cosine, warmup_inverse_sqrt, warmup_stable_decay
from .optimizers import adamw, ademamix, muon, nadamw, schedule_free_adamw
from .recipe import Recipe

__all__ = [
    "Recipe", "adamw", "ademamix", "ema", "follows_rate", "growing", "lawa", "muon", "nadamw", "schedule_free_adamw",
    "warmup_constant", "warmup_cosine", "warmup_inverse_sqrt", "warmup_stable_decay",
]  # fmt: skip
