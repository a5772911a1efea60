"""torch.optim.Muon for the matrices of a model, and NadamW for all else, as one optimizer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..optimizers import EPSILON, MOMENTUM, OptimizerSettings, hidden_matrices
from .nadamw import NadamW


class MuonAndNadamW(Optimizer):
    """Both, with the groups of both, which they share with this one: a scheduler sets the rates of all.

    Args:
        parts: the optimizers by name.
    """

    def __init__(self, parts: Mapping[str, Optimizer]) -> None:
        self.parts = dict(parts)
        super().__init__([group for part in self.parts.values() for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts.values():
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
        self.param_groups = [group for part in self.parts.values() for group in part.param_groups]


@dataclass(frozen=True)
class MuonBase:
    """The base optimizer: what it takes, and how it is made.

    Attributes:
        kind: None where the torch that is there has not got it.
        requirement: of pip, for one that has.
    """

    settings: OptimizerSettings
    kind: Callable[..., Optimizer] | None
    requirement: str = "torch>=2.9"

    def missing(self) -> str | None:
        """What to install first, in one line; None if nothing."""
        if self.kind is not None:
            return None
        return (
            f"muon is torch.optim.Muon, which torch {torch.__version__} has not got: pip install '{self.requirement}'"
        )

    def build(self, model: nn.Module, hyperparameters: Any, step_hint: int) -> Optimizer:
        """The optimizer of a model's parameters. `step_hint` is for those with schedules of their own."""
        del step_hint
        assert self.kind is not None
        embeddings = {
            id(parameter)
            for module in model.modules()
            if isinstance(module, nn.Embedding | nn.EmbeddingBag)
            for parameter in module.parameters()
        }
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            hidden = id(parameter) not in embeddings and hidden_matrices(name, parameter.ndim)
            (matrices if hidden else others).append(parameter)
        return MuonAndNadamW(self._parts(matrices, others, hyperparameters))

    def _parts(
        self, matrices: Sequence[nn.Parameter], others: Sequence[nn.Parameter], hyperparameters: Any
    ) -> dict[str, Optimizer]:
        both = {"lr": hyperparameters.learning_rate, "weight_decay": hyperparameters.weight_decay}
        parts: dict[str, Optimizer] = {}
        if matrices:
            assert self.kind is not None
            momentum = getattr(hyperparameters, "momentum", MOMENTUM)
            parts["muon"] = self.kind(matrices, **both, momentum=momentum, adjust_lr_fn="match_rms_adamw")
        if others:
            betas = (1.0 - hyperparameters.one_minus_beta1, float(hyperparameters.beta2))
            epsilon = getattr(hyperparameters, "epsilon", EPSILON)
            parts["nadamw"] = NadamW(others, **both, betas=betas, eps=epsilon)
        return parts
