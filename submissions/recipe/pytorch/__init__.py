"""The recipe in PyTorch: base optimizers, learning-rate schedules, the update step, averaging."""

from ..averaging import ema, follows_rate, growing, lawa
from .optimizers import adamw, ademamix, muon, nadamw, schedule_free_adamw, shampoo, soap
from .recipe import Recipe
from .schedules import warmup_constant, warmup_cosine, warmup_inverse_sqrt, warmup_stable_decay

__all__ = [
    "Recipe", "adamw", "ademamix", "ema", "follows_rate", "growing", "lawa", "muon", "nadamw", "schedule_free_adamw",
    "shampoo", "soap", "warmup_constant", "warmup_cosine", "warmup_inverse_sqrt",
    "warmup_stable_decay",
]  # fmt: skip
