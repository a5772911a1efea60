"""NadamW's step as the submissions take it, beside a loop over tensors that does the same arithmetic.

python -m benchmarks.nadamw_step
"""

import math

import torch
from torch import Tensor, nn

from benchmarks.timing import device, machine, medians
from submissions.recipe.pytorch.nadamw import NadamW

SHAPES = {"few large tensors (4 x 25e6)": [25_000_000] * 4, "many small tensors (600 x 4e4)": [40_000] * 600}


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


def main() -> None:
    print(f"{machine()}\n\n| model | loop, ms | NadamW, ms | times faster |\n|---|---|---|---|")
    for name, sizes in SHAPES.items():
        parameters = [nn.Parameter(torch.randn(size, device=device())) for size in sizes]
        for p in parameters:
            p.grad = torch.randn_like(p)
        fused = NadamW(parameters, lr=1e-3, betas=(0.9, 0.999), weight_decay=0.1)
        loop = LoopNadamW(list(parameters))
        seconds = medians({"loop": loop.step, "fused": fused.step})
        ratio = seconds["loop"] / seconds["fused"]
        print(f"| {name} | {1e3 * seconds['loop']:.1f} | {1e3 * seconds['fused']:.1f} | {ratio:.1f} |")


if __name__ == "__main__":
    main()
