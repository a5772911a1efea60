"""NadamW's step as the submissions take it, beside a loop over tensors that does the same arithmetic, and torch's own.

python -m benchmarks.nadamw_step
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from benchmarks.timing import device, machine, medians
from submissions.recipe.pytorch.nadamw import NadamW

SHAPES = {"few large tensors (4 x 25e6)": [25_000_000] * 4, "many small tensors (600 x 4e4)": [40_000] * 600}
HEAD = ["model", "loop, ms", "NadamW, ms", "times faster", "torch's fused AdamW, ms", "torch's NAdam (foreach), ms"]


class LoopNadamW:
    """The update tensor by tensor, in the order of the equations."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters, self.step_count = parameters, 0
        self.m = [torch.zeros_like(p) for p in parameters]
        self.v = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self, lr: float = 1e-3, b1: float = 0.9, b2: float = 0.999, decay: float = 0.1, eps: float = 1e-8) -> None:
        self.step_count += 1
        for p, m, v in zip(self.parameters, self.m, self.v, strict=True):
            g = p.grad
            assert g is not None
            p.mul_(1 - lr * decay)
            m.lerp_(g, 1 - b1)
            v.mul_(b2).addcmul_(g, g, value=1 - b2)
            ahead = m.mul(b1).add_(g, alpha=1 - b1)
            denominator = v.sqrt().div_(math.sqrt(1 - b2**self.step_count)).add_(eps)
            p.addcdiv_(ahead, denominator, value=-lr / (1 - b1**self.step_count))


def rows(shapes: Mapping[str, Sequence[int]]) -> list[list[str]]:
    """A row of `HEAD` for each model, by its name and the sizes of its tensors."""
    found = []
    for name, sizes in shapes.items():
        parameters = [nn.Parameter(torch.randn(size, device=device())) for size in sizes]
        for p in parameters:
            p.grad = torch.randn_like(p)
        steps = {
            "loop": LoopNadamW(list(parameters)).step,
            "fused": NadamW(parameters, lr=1e-3, betas=(0.9, 0.999), weight_decay=0.1).step,
            "adamw": torch.optim.AdamW(parameters, lr=1e-3, fused=True).step,
            "nadam": torch.optim.NAdam(parameters, lr=1e-3, foreach=True).step,
        }
        seconds = medians(steps)
        ms = {action: f"{1e3 * value:.2f}" for action, value in seconds.items()}
        ratio = f"{seconds['loop'] / seconds['fused']:.1f}"
        found.append([name, ms["loop"], ms["fused"], ratio, ms["adamw"], ms["nadam"]])
    return found


def main() -> None:
    print(f"{machine()}\n\n| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for row in rows(SHAPES):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
