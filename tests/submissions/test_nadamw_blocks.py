"""NadamW's step in blocks, and of tensors in any order of memory."""

import copy
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from submissions.recipe.pytorch.nadamw import NadamW

MODULE = sys.modules[NadamW.__module__]  # its package has another thing of that name
POINT = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1}


class InWholeTensors(torch.optim.AdamW):
    """The same three steps, each over all tensors before the next."""

    def step(self):
        held = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        for p in held:
            if not self.state[p]:
                self.state[p] = {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": p.detach() * 0}
        with torch.no_grad():
            for p in held:
                self.state[p]["exp_avg"].add_(p.grad, alpha=1 - 0.9)
            super().step()
            for p in held:
                self.state[p]["exp_avg"].add_(p.grad, alpha=-(1 - 0.9))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 700), st.sampled_from([torch.float32, torch.float64])), min_size=1, max_size=6),
    st.integers(1, 12),
    st.integers(0, 1000),
    st.data(),
)
def test_blocks_of_any_size_give_the_same_bits(kinds, block, seed, data):
    torch.manual_seed(seed)
    mine = [nn.Parameter(torch.randn(size, dtype=dtype)) for size, dtype in kinds]
    theirs = copy.deepcopy(mine)
    split = data.draw(st.integers(0, len(mine)))
    one = NadamW([{"params": mine[:split], "weight_decay": 0.0}, {"params": mine[split:]}], **POINT)
    other = InWholeTensors(
        [{"params": theirs[:split], "weight_decay": 0.0}, {"params": theirs[split:]}], fused=True, **POINT
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "BLOCK", 64 * block)  # of whole vectors, whose ends round otherwise
        for _ in range(3):
            for p, q in zip(mine, theirs, strict=True):
                p.grad = torch.randn_like(p) if data.draw(st.booleans()) else None
                q.grad = copy.deepcopy(p.grad)
            one.step()
            other.step()
    for p, q in zip(mine, theirs, strict=True):
        assert torch.equal(p, q)
        for name, value in other.state[q].items():
            assert torch.equal(one.state[p][name], value), name


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1000),
    st.integers(1, 60),
    st.sampled_from([0.0, 0.5, 0.9, 0.98]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    st.booleans(),
)
def test_the_first_moment_is_b1_m_to_rounding(seed, steps, b1, dtype, maximize):
    """As saved states have held it since they are written, whatever calls compute it; gradients stay as they are."""
    torch.manual_seed(seed)
    p, m = nn.Parameter(torch.randn(40, dtype=dtype)), torch.zeros(40, dtype=torch.float64)
    optimizer = NadamW([{"params": [p], "maximize": maximize}], lr=0.0, betas=(b1, 0.99))
    largest = 0.0
    for _ in range(steps):
        grad = torch.randn(40, dtype=dtype)
        p.grad = grad.clone()
        optimizer.step()
        assert torch.equal(p.grad, grad)
        m = b1 * m + (1 - b1) * (-grad if maximize else grad).double()
        largest = max(largest, grad.abs().max().item())
    # A step rounds by half of eps of what it adds, 1 - b1 of a gradient, and of the moment; b1 of it is kept.
    torch.testing.assert_close(
        optimizer.state[p]["exp_avg"].double(), b1 * m, rtol=0, atol=4 * torch.finfo(dtype).eps * largest
    )


def laid_out(tensor, layout):
    if layout == "with gaps":
        return torch.empty(*tensor.shape[:-1], 2 * tensor.shape[-1])[..., ::2].copy_(tensor)
    if layout == "transposed":
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)
    return tensor.contiguous(memory_format=getattr(torch, layout))


LAYOUTS = st.sampled_from(["contiguous_format", "channels_last", "transposed", "with gaps"])


@settings(max_examples=40, deadline=None)
@given(LAYOUTS, LAYOUTS, LAYOUTS, st.sampled_from([64, 1000]))
def test_the_order_in_memory_changes_no_weight(first, gradients, later, block):
    """The parameter's, that of its gradients, and that of a model into which the state is restored."""
    results = []
    for plain in (True, False):
        torch.manual_seed(0)
        start, grads = torch.randn(4, 4, 2, 4), [torch.randn(4, 4, 2, 4) for _ in range(4)]
        p = nn.Parameter(start if plain else laid_out(start, first))
        optimizer = NadamW([p], **POINT)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MODULE, "BLOCK", block)
            for number, grad in enumerate(grads):
                if number == 2:
                    state = copy.deepcopy(optimizer.state_dict())
                    p = nn.Parameter(p.detach() if plain else laid_out(p.detach(), later))
                    optimizer = NadamW([p], **POINT)
                    optimizer.load_state_dict(state)
                p.grad = grad if plain else laid_out(grad, gradients)
                optimizer.step()
        results.append(p.detach())
    assert torch.equal(*results)


def test_sparse_gradients_are_refused_before_anything_moves():
    p = nn.Parameter(torch.ones(3, 2))
    p.grad = torch.eye(3)[:, :2].to_sparse()
    with pytest.raises(RuntimeError, match="sparse=False"):
        NadamW([p], **POINT).step()
    assert torch.equal(p.detach(), torch.ones(3, 2))
