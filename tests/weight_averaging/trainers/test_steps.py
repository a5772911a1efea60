"""Steps of optimizers are counted, whichever way the optimizer is made."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from weight_averaging.trainers.steps import watch


class Wrapping(torch.optim.Optimizer):
    """As timm's Lookahead: it does not call super().__init__(), so that its step knows no hooks."""

    def __init__(self, inner):
        self.inner, self.param_groups, self.defaults, self.state = (
            inner,
            inner.param_groups,
            inner.defaults,
            inner.state,
        )

    def step(self, closure=None):
        return self.inner.step(closure)


class WithHookDicts(Wrapping):
    def __init__(self, inner):
        super().__init__(inner)
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = OrderedDict(), OrderedDict()


class DuckTyped:
    def __init__(self, inner):
        self.inner = inner

    def step(self, closure=None):
        return self.inner.step(closure)


class Slotted:
    __slots__ = ("inner",)
    __init__ = DuckTyped.__init__
    step = DuckTyped.step


class Fresh(Wrapping):
    """A class whose step no zero_grad() of an earlier test has touched."""


KINDS = {"torch": lambda inner: inner, "wrapping": Wrapping, "hook dicts": WithHookDicts, "duck-typed": DuckTyped}


def sgd():
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.ones(1)
    return torch.optim.SGD([parameter], lr=1.0)


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_every_step_is_told_once_until_the_end(make):
    inner = sgd()
    optimizer = make(inner)
    own = vars(optimizer).get("step")
    steps = []
    end = watch(optimizer, lambda: steps.append(inner.param_groups[0]["params"][0].item()))
    optimizer.step()
    optimizer.step()
    assert steps == [-1.0, -2.0]  # after the step
    end()
    optimizer.step()
    assert steps == [-1.0, -2.0]
    assert vars(optimizer).get("step") is own


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_two_may_watch_and_end_in_any_order(make):
    optimizer = make(sgd())
    steps = []
    first = watch(optimizer, lambda: steps.append(1))
    second = watch(optimizer, lambda: steps.append(2))
    optimizer.step()
    assert sorted(steps) == [1, 2]
    second()
    optimizer.step()
    assert sorted(steps) == [1, 1, 2]
    first()


def test_zero_grad_may_come_in_between():
    """Which lets the step of a class look for hooks that it has never had."""
    steps = []
    for _ in range(2):
        optimizer = Fresh(sgd())
        end = watch(optimizer, lambda: steps.append(1))
        for _ in range(3):
            optimizer.zero_grad()
            optimizer.step()
        end()
    assert len(steps) == 6


def test_a_step_that_grad_scaler_skips_is_none():
    inner = sgd()
    steps = []
    watch(DuckTyped(inner), lambda: steps.append(1))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    optimizer = Wrapping(inner)
    watch(optimizer, lambda: steps.append(2))
    (parameter,) = inner.param_groups[0]["params"]
    for factor in (1.0, float("inf")):
        optimizer.zero_grad()
        scaler.scale(parameter.sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
    assert steps == [2]


def test_one_that_cannot_be_watched_is_told():
    with pytest.raises(TypeError, match="nobody can be told of the steps of Slotted"):
        watch(Slotted(sgd()), lambda: None)
