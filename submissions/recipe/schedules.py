"""Learning-rate schedules as functions of the step: the factor of the top learning rate. Pure Python.

A step is the number of updates before the one that takes this rate: 0, 1, 2, ...
"""

import math
from typing import Any


def warmup_cosine(step: int, step_hint: int, hyperparameters: Any) -> float:
    """Linear warmup over `warmup_factor * step_hint` updates, then a cosine down to `final_lr_factor` (default 0) at
    `step_hint`, and constant after that. With `schedule_fraction` all of this happens in that share of `step_hint`."""
    step_hint, warmup_steps = lengths(step_hint, hyperparameters)
    if step < warmup_steps:
        return _warmup(step, warmup_steps)
    final = getattr(hyperparameters, "final_lr_factor", 0.0)
    share = min(1.0, (step - warmup_steps) / (step_hint - warmup_steps))
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * share))


def warmup_constant(step: int, step_hint: int, hyperparameters: Any) -> float:
    """Linear warmup over `warmup_factor * step_hint` updates, then 1 throughout ("no decay")."""
    return _warmup(step, int(hyperparameters.warmup_factor * step_hint))


DECAY_SHARE = 0.2  # where `decay_share` is not given


def warmup_stable_decay(step: int, step_hint: int, hyperparameters: Any) -> float:
    """Linear warmup, 1, and over the last `decay_share` (default .2) of the schedule down to `final_lr_factor`.

    The decay is 1 - sqrt(its share that is over), the best of those compared by Hägele et al. (2024, arXiv 2405.18392,
    section 3). `schedule_fraction` as for the cosine; constant after the end.
    """
    total, warmup_steps = lengths(step_hint, hyperparameters)
    if step < warmup_steps:
        return _warmup(step, warmup_steps)
    decay = max(1, round(getattr(hyperparameters, "decay_share", DECAY_SHARE) * total))
    begin = max(total - decay, warmup_steps)
    final = getattr(hyperparameters, "final_lr_factor", 0.0)
    share = min(1.0, max(0, step - begin) / (total - begin))
    return final + (1.0 - final) * (1.0 - math.sqrt(share))


def warmup_inverse_sqrt(step: int, step_hint: int, hyperparameters: Any) -> float:
    """Linear warmup over w = max(1, `warmup_factor * step_hint`) updates, then sqrt(w / step).

    That of Vaswani et al. (2017, arXiv 1706.03762, section 5.3). Beyond its warmup it does not know the length of the
    run. With an average that grows it gives a model at any time (Meterez et al. 2026, arXiv 2602.03702).
    """
    warmup_steps = int(hyperparameters.warmup_factor * step_hint)
    first = max(1, warmup_steps)
    return math.sqrt(first / step) if step > first else _warmup(step, warmup_steps)


def lengths(step_hint: int, hyperparameters: Any) -> tuple[int, int]:
    """The updates of a schedule that ends, in all and of warmup."""
    total = max(1, round(getattr(hyperparameters, "schedule_fraction", 1.0) * step_hint))
    return total, int(hyperparameters.warmup_factor * total)


def _warmup(step: int, warmup_steps: int) -> float:
    # From (almost) zero: torch's LinearLR refuses a start of zero.
    return 1.0 if step >= warmup_steps else 1e-10 + (1.0 - 1e-10) * step / warmup_steps
