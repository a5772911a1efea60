"""NadamW: AdamW with Nesterov momentum, at the speed of PyTorch's fused AdamW."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class NadamW(torch.optim.AdamW):
    """NAdam (Dozat 2016; Choi et al. 2019, arXiv 1910.05446, Table 1) with decoupled weight decay.

    With gradient g and step t = 1, 2, ...:

        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) g^2
        theta <- (1 - lr wd) theta - lr [(b1 m + (1 - b1) g) / (1 - b1^t)] / (sqrt(v / (1 - b2^t)) + eps)

    It is not `torch.optim.NAdam`, whose momentum follows a schedule. The bracket is AdamW's first moment taken one step
    further. So a fused AdamW step does the work on a moment moved ahead, and what it adds is taken off again. Between
    steps `exp_avg` holds b1 m.

    Args:
        params: parameters or parameter groups.
        lr, betas, eps, weight_decay: as above.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float],
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)
        # The moments move ahead before the fused step, which would unscale only what it sees: GradScaler has to do it.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update. The closure, if given, recomputes the loss, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moments = [self._moments(group) for group in self.param_groups]
        for exp_avgs, grads, ahead in moments:
            if grads:
                torch._foreach_add_(exp_avgs, grads, alpha=ahead)  # b1 m -> m of this step
        super().step()  # m -> b1 m + (1 - b1) g, and the parameters with it
        for exp_avgs, grads, ahead in moments:
            if grads:
                torch._foreach_add_(exp_avgs, grads, alpha=-ahead)  # -> b1 m
        return loss

    def _moments(self, group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor], float]:
        parameters = [p for p in group["params"] if p.grad is not None]
        for p in parameters:
            if not self.state[p]:  # as AdamW would set it up
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                self.state[p]["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return [self.state[p]["exp_avg"] for p in parameters], [p.grad for p in parameters], 1.0 - group["betas"][0]
