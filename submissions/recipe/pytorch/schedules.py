"""The schedules of `recipe.schedules` by torch.optim.lr_scheduler, whose states the harness saves."""

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LambdaLR, LinearLR, LRScheduler, SequentialLR

from .. import schedules
from ..schedules import lengths


def warmup_cosine(optimizer: Optimizer, hyperparameters: Any, step_hint: int) -> LRScheduler:
    step_hint, warmup_steps = lengths(step_hint, hyperparameters)
    top = optimizer.param_groups[0]["lr"]
    final = getattr(hyperparameters, "final_lr_factor", 0.0)
    cosine = CosineAnnealingLR(optimizer, T_max=step_hint - warmup_steps, eta_min=final * top)
    # Left to itself the cosine would climb again in a run that outlasts its step_hint.
    constant = ConstantLR(optimizer, factor=final, total_iters=2**62)
    return _in_turn(optimizer, warmup_steps, [cosine, constant], [step_hint])


def warmup_constant(optimizer: Optimizer, hyperparameters: Any, step_hint: int) -> LRScheduler:
    constant = ConstantLR(optimizer, factor=1.0, total_iters=0)
    return _in_turn(optimizer, int(hyperparameters.warmup_factor * step_hint), [constant], [])


def warmup_stable_decay(optimizer: Optimizer, hyperparameters: Any, step_hint: int) -> LRScheduler:
    return LambdaLR(optimizer, lambda step: schedules.warmup_stable_decay(step, step_hint, hyperparameters))


def warmup_inverse_sqrt(optimizer: Optimizer, hyperparameters: Any, step_hint: int) -> LRScheduler:
    return LambdaLR(optimizer, lambda step: schedules.warmup_inverse_sqrt(step, step_hint, hyperparameters))


def _in_turn(optimizer: Optimizer, warmup_steps: int, parts: list[LRScheduler], milestones: list[int]) -> LRScheduler:
    if warmup_steps > 0:
        # From (almost) zero: LinearLR refuses a start of zero.
        warmup = LinearLR(optimizer, start_factor=1e-10, end_factor=1.0, total_iters=warmup_steps)
        parts, milestones = [warmup, *parts], [warmup_steps, *milestones]
    return SequentialLR(optimizer, parts, milestones)
