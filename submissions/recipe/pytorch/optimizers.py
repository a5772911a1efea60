"""The base optimizers of the submissions in PyTorch."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from .. import optimizers
from ..optimizers import EPSILON, OptimizerSettings
from . import shampoo as distributed_shampoo
from .muon import MuonBase
from .nadamw import NadamW


def adams(hyperparameters: Any, step_hint: int) -> dict[str, Any]:
    """The arguments that all the optimizers here share. `step_hint` is for those with schedules of their own."""
    del step_hint
    return {
        "lr": hyperparameters.learning_rate,
        "betas": (1.0 - hyperparameters.one_minus_beta1, float(hyperparameters.beta2)),
        "eps": getattr(hyperparameters, "epsilon", EPSILON),
    }


@dataclass(frozen=True)
class BaseOptimizer:
    """A base optimizer: what it takes, and what is called with parameter groups and the arguments.

    Attributes:
        requirement: of pip, for the package that it is from; "" where torch is enough.
        package: as it is imported, where the requirement says otherwise.
    """

    settings: OptimizerSettings
    kind: Callable[..., Optimizer]
    arguments: Callable[[Any, int], dict[str, Any]] = adams
    requirement: str = ""
    package: str = ""

    def missing(self) -> str | None:
        """What to install first, in one line; None if nothing."""
        package = self.package or self.requirement.partition("==")[0]
        if not package or importlib.util.find_spec(package) is not None:
            return None
        wanted = f"'{self.requirement}'" if " " in self.requirement else self.requirement
        return f"{self.settings.name} is from the package {package}, which is missing: pip install {wanted}"

    def build(self, model: nn.Module, hyperparameters: Any, step_hint: int) -> Optimizer:
        """The optimizer of a model's parameters. The state of one that decays them all has one group, else two."""
        decayed: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            decays = self.settings.decays(name.rpartition(".")[2], parameter.ndim)
            (decayed if decays else others).append(parameter)
        groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": hyperparameters.weight_decay}]
        if others:
            groups.append({"params": others, "weight_decay": 0.0})
        return self.kind(groups, **self.arguments(hyperparameters, step_hint))


def _of_package(package: str, name: str, *args: Any, **kwargs: Any) -> Optimizer:
    """Imported when it is built: the other submissions do without the package."""
    made: Optimizer = getattr(importlib.import_module(package), name)(*args, **kwargs)
    return made


def _ademamix(hyperparameters: Any, step_hint: int) -> dict[str, Any]:
    """The slow momentum's two schedules go on to the end of training, as in the paper."""
    shared = adams(hyperparameters, step_hint)
    shared["betas"] = (*shared["betas"], hyperparameters.beta3)
    return {**shared, "alpha": hyperparameters.alpha, "t_alpha_beta3": step_hint, "weight_decouple": True}


def _soap(hyperparameters: Any, step_hint: int) -> dict[str, Any]:
    names = ("precondition_frequency", "max_precondition_dim")
    given = {name: int(getattr(hyperparameters, name)) for name in names if hasattr(hyperparameters, name)}
    return {**adams(hyperparameters, step_hint), **given}


PYTORCH_OPTIMIZER = "pytorch_optimizer==4.1.0"
nadamw = BaseOptimizer(optimizers.nadamw, NadamW)
adamw = BaseOptimizer(optimizers.adamw, partial(AdamW, fused=True))
ademamix = BaseOptimizer(
    optimizers.ademamix, partial(_of_package, "pytorch_optimizer", "AdEMAMix"), _ademamix, PYTORCH_OPTIMIZER
)
schedule_free_adamw = BaseOptimizer(
    optimizers.schedule_free_adamw,
    partial(_of_package, "schedulefree", "AdamWScheduleFree"),
    requirement="schedulefree==1.4.1",
)
soap = BaseOptimizer(optimizers.soap, partial(_of_package, "pytorch_optimizer", "SOAP"), _soap, PYTORCH_OPTIMIZER)
muon = MuonBase(optimizers.muon, getattr(torch.optim, "Muon", None))
shampoo = BaseOptimizer(
    optimizers.shampoo,
    distributed_shampoo.shampoo,
    distributed_shampoo.arguments,
    distributed_shampoo.REQUIREMENT,
    distributed_shampoo.PACKAGE,
)
