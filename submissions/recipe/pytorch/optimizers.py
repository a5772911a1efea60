"""The base optimizers of the submissions in PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

from .. import optimizers
from ..optimizers import EPSILON, OptimizerSettings
from .nadamw import NadamW


@dataclass(frozen=True)
class BaseOptimizer:
    """A base optimizer: what it takes, and what is called with parameter groups and Adam's arguments."""

    settings: OptimizerSettings
    kind: Callable[..., Optimizer]

    def build(self, model: nn.Module, hyperparameters: Any) -> Optimizer:
        """The optimizer of a model's parameters. The state of one that decays them all has one group, else two."""
        decayed: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            decays = self.settings.decays(name.rpartition(".")[2], parameter.ndim)
            (decayed if decays else others).append(parameter)
        groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": hyperparameters.weight_decay}]
        if others:
            groups.append({"params": others, "weight_decay": 0.0})
        return self.kind(
            groups,
            lr=hyperparameters.learning_rate,
            betas=(1.0 - hyperparameters.one_minus_beta1, hyperparameters.beta2),
            eps=getattr(hyperparameters, "epsilon", EPSILON),
        )


nadamw = BaseOptimizer(optimizers.nadamw, NadamW)
adamw = BaseOptimizer(optimizers.adamw, partial(AdamW, fused=True))
