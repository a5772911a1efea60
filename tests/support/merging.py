"""What changes weights in eval(): a layer that merges low-rank weights, as of loralib, and an optimizer."""

import torch
from torch import nn


class MergingLayer(nn.Module):
    """y = w x + b a x; in evaluation mode b a is added to w, behind autograd's back."""

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.weight, self.a, self.b = (nn.Parameter(torch.full((1, 1), value)) for _ in range(3))
        self.merged = False

    def train(self, mode: bool = True) -> "MergingLayer":
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * self.b @ self.a
            self.merged = not mode
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T + (0 if self.merged else x @ self.a.T @ self.b.T)


class SwappingSGD(torch.optim.SGD):
    """SGD that doubles its parameters in eval(), and halves them in train(): schedule-free optimizers do the like."""

    training = True

    def eval(self) -> None:
        self._scale(2.0, to=False)

    def train(self) -> None:
        self._scale(0.5, to=True)

    @torch.no_grad()
    def _scale(self, factor: float, to: bool) -> None:
        if self.training != to:
            self.training = to
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.mul_(factor)
