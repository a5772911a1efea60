"""NadamW: AdamW with Nesterov momentum, by PyTorch's fused AdamW."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

# Weights; with gradients and moments 4 MB, which the caches of a CPU hold. Whole vectors: what is left over at the end
# of a call rounds otherwise.
BLOCK = 2**18

Member = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # parameter, gradient, both moments, step


class NadamW(torch.optim.AdamW):
    """NAdam (Dozat 2016; Choi et al. 2019, arXiv 1910.05446, Table 1) with decoupled weight decay.

    With gradient g and step t = 1, 2, ...:

        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) g^2
        theta <- (1 - lr wd) theta - lr [(b1 m + (1 - b1) g) / (1 - b1^t)] / (sqrt(v / (1 - b2^t)) + eps)

    It is not `torch.optim.NAdam`, whose momentum follows a schedule. The bracket is AdamW's first moment taken one step
    further. So a fused AdamW step does the work on a moment moved ahead, and what it adds is taken off again. Between
    steps `exp_avg` holds b1 m. On a CPU all three go block by block, while a block is in the cache: the same bits.

    Gradients and restored moments may have other strides than their parameter, as after `to(memory_format=...)`. The
    fused step reads memory in its order, on a CPU without a check, so they are brought into the parameter's first.

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
        groups = [(group, self._members(group)) for group in self.param_groups]
        if all(_on_cpu(member[0]) for _, members in groups for member in members):
            for group, members in groups:
                _step_on_cpu(group, members)
            return loss
        moments = [
            ([m for _, _, m, *_ in members], [g for _, g, *_ in members], _ahead(group))
            for group, members in groups
            if members
        ]
        for exp_avgs, grads, ahead in moments:
            torch._foreach_add_(exp_avgs, grads, alpha=ahead)  # b1 m -> m of this step
        super().step()  # m -> b1 m + (1 - b1) g, and the parameters with it
        for exp_avgs, grads, ahead in moments:
            torch._foreach_add_(exp_avgs, grads, alpha=-ahead)  # -> b1 m
        return loss

    def _members(self, group: dict[str, Any]) -> list[Member]:
        members = []
        for p in group["params"]:
            if (grad := p.grad) is None:
                continue
            if grad.is_sparse:
                raise RuntimeError("NadamW takes no sparse gradients: make the embedding with sparse=False")
            state = self.state[p]
            if not state:  # as AdamW would set it up
                state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            strides = p.stride()
            if not state["exp_avg"].stride() == state["exp_avg_sq"].stride() == strides:
                for name in ("exp_avg", "exp_avg_sq"):
                    state[name] = _laid_out(state[name], p)
            members.append((p, grad, state["exp_avg"], state["exp_avg_sq"], state["step"]))
        return members


def _ahead(group: dict[str, Any]) -> float:
    """The share of the gradient by which the first moment moves ahead."""
    share: float = 1.0 - group["betas"][0]
    return -share if group["maximize"] else share


def _on_cpu(p: Tensor) -> bool:
    return p.is_cpu and type(p) in (Tensor, nn.Parameter)  # others need not have memory of their own


def _laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """The same values in memory as a new tensor like `like` has them: in its order, and without gaps."""
    if tensor.stride() == like.stride():
        return tensor
    new = torch.empty_like(like, dtype=tensor.dtype, memory_format=torch.preserve_format)
    return tensor if tensor.stride() == new.stride() else new.copy_(tensor)


def _step_on_cpu(group: dict[str, Any], members: list[Member]) -> None:
    """What `step` does for the parameters of a group, block by block."""
    # The moments are without gaps. What is like them, is so too.
    dense = [
        member
        if member[0].stride() == member[1].stride() == member[2].stride()
        else (_laid_out(member[0], member[2]), _laid_out(member[1], member[2]), *member[2:])
        for member in members
    ]
    ahead, (beta1, beta2) = _ahead(group), group["betas"]
    names = ("lr", "weight_decay", "eps", "amsgrad", "maximize")
    options = {name: group[name] for name in names} | {"beta1": beta1, "beta2": beta2}
    if members:
        torch._foreach_add_([member[4] for member in members], 1)
    for params, grads, exp_avgs, exp_avg_sqs, steps in _blocks(dense):
        torch._foreach_add_(exp_avgs, grads, alpha=ahead)
        torch._fused_adamw_(params, grads, exp_avgs, exp_avg_sqs, [], steps, **options)
        torch._foreach_add_(exp_avgs, grads, alpha=-ahead)
    for member, own in zip(members, dense, strict=True):
        if own[0] is not member[0]:
            member[0].copy_(own[0])


def _blocks(members: list[Member]) -> Iterator[tuple[list[Tensor], ...]]:
    """Lists of what belongs together, of one type: of several small parameters, or a piece of a large one."""
    few: list[Member] = []
    held = 0
    for member in members:
        size, dtype = member[0].numel(), member[0].dtype
        if few and (held + size > BLOCK or dtype != few[0][0].dtype):
            yield tuple(map(list, zip(*few, strict=True)))
            few, held = [], 0
        if size > BLOCK and dtype.itemsize > 2:  # how 16 bits are rounded depends on the place in the tensor
            pieces = zip(*(tensor.as_strided((size,), (1,)).split(BLOCK) for tensor in member[:4]), strict=True)
            yield from (tuple([tensor] for tensor in (*piece, member[4])) for piece in pieces)
        else:
            few.append(member)
            held += size
    if few:
        yield tuple(map(list, zip(*few, strict=True)))
