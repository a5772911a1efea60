"""Batch-norm statistics of averaged weights."""

import pytest
import torch
from torch import nn

from weight_averaging.torch import EMA, recompute_batch_norm


def model_of() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))


def batches(count: int) -> list[torch.Tensor]:
    return [torch.randn(16, 3, generator=torch.Generator().manual_seed(i)) for i in range(count)]


@pytest.mark.parametrize("momentum", [0.1, 0.9, None])
def test_the_statistics_are_those_of_the_batches_under_the_weights_as_they_are(momentum):
    model = model_of()
    model[1].momentum = momentum
    model[1].running_mean.fill_(100.0)  # of other weights
    model.eval()
    data = batches(4)
    recompute_batch_norm(model, [lambda x=x: model(x) for x in data])
    features = [model[0](x) for x in data]
    weights = torch.tensor([1.0] * 4 if momentum is None else [(1 - momentum) ** (3 - i) for i in range(4)])
    for values, got in (
        ([f.mean(0) for f in features], model[1].running_mean),
        ([f.var(0) for f in features], model[1].running_var),
    ):
        expected = (torch.stack(values) * weights[:, None]).sum(0) / weights.sum()
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert not model.training
    with pytest.raises(ValueError, match="at least one forward pass"):
        recompute_batch_norm(model, [])


@pytest.mark.parametrize("dropout", [nn.Dropout, nn.Dropout1d, nn.AlphaDropout, nn.FeatureAlphaDropout])
def test_dropout_is_off_as_in_evaluations(dropout):
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(dropout(0.5)), nn.BatchNorm1d(4))
    data = batches(1)[0]
    random = torch.get_rng_state()
    recompute_batch_norm(model, [lambda: model(data)])
    torch.testing.assert_close(model[2].running_mean, model[0](data).mean(0).detach())
    assert torch.equal(random, torch.get_rng_state())
    assert all(module.training for module in model.modules())


class OtherBatchNorm(nn.Module):
    """Batch norm in all but name, as in AlgoPerf's speech models: it replaces its buffers at every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.momentum = 0.001
        self.register_buffer("running_mean", torch.full((3,), 5.0))
        self.register_buffer("running_var", torch.full((3,), 5.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.running_mean = (1 - self.momentum) * self.running_mean + self.momentum * x.mean(0).detach()
            self.running_var = (1 - self.momentum) * self.running_var + self.momentum * x.var(0).detach()
        return (x - self.running_mean) / (self.running_var + 1e-5).sqrt()


def test_modules_that_are_batch_norm_in_all_but_name():
    model = nn.Sequential(OtherBatchNorm())
    data = batches(1)[0]
    recompute_batch_norm(model, [lambda: model(data)])
    torch.testing.assert_close(model[0].running_mean, data.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model[0].running_var, data.var(0), rtol=1e-4, atol=1e-5)


def train_step(model: nn.Module, step: int) -> None:
    model.train()
    loss = model(torch.randn(16, 3)).pow(2).mean()
    loss.backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.1 * p.grad
            p.grad = None


def test_recomputed_statistics_are_there_for_evaluation_only():
    """Training goes on as if there had been none: weights, statistics and random numbers."""
    ends = []
    for evaluating in (False, True):
        model = model_of()
        ema = EMA(model, decay=0.5, buffers="recompute")
        torch.manual_seed(1)
        for step in range(1, 7):
            train_step(model, step)
            ema.update(step)
            if evaluating and step in (2, 4):
                raw = model[1].running_mean.clone()
                with ema.averaged(lambda m=model: recompute_batch_norm(m, [lambda x=x: m(x) for x in batches(3)])):
                    assert not torch.equal(model[1].running_mean, raw)
                assert torch.equal(model[1].running_mean, raw)
        ends.append(model.state_dict())
    for key, value in ends[0].items():
        assert torch.equal(value, ends[1][key]), key
    with pytest.raises(TypeError, match="needs a function to do it"):
        ema.swap_in()


def test_a_state_saved_while_swapped_holds_the_raw_statistics():
    model = model_of()
    ema = EMA(model, decay=0.5, buffers="recompute")
    train_step(model, 1)
    ema.update(1)
    raw = {key: value.clone() for key, value in model.state_dict().items()}
    ema.swap_in(lambda: recompute_batch_norm(model, [lambda x=x: model(x) for x in batches(3)]))
    resumed = model_of()
    other = EMA(resumed, decay=0.5, buffers="recompute")
    resumed.load_state_dict(model.state_dict())
    other.load_state_dict(ema.state_dict())
    for key, value in resumed.state_dict().items():
        assert torch.equal(value, raw[key]), key


class Twice(nn.Module):
    """One layer, used twice a pass."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        self.norm(x)
        return self.norm(x)


@pytest.mark.parametrize("norm", [lambda: nn.BatchNorm1d(3), OtherBatchNorm], ids=["torch", "other"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_layer_that_is_used_twice_a_pass(norm, compiled):
    model = Twice(norm())
    model.norm.running_mean.fill_(16.0)
    data = torch.full((8, 3), 10.0) + torch.randn(8, 3) * 1e-3
    run = torch.compile(model, backend="eager") if compiled else model
    recompute_batch_norm(model, [lambda: run(data)])
    if compiled and not hasattr(model.norm, "num_batches_tracked"):
        return  # its hooks may not be called, and what it counts is not known
    torch.testing.assert_close(model.norm.running_mean, data.mean(0), rtol=1e-3, atol=1e-3)


def layers(momentum=0.1):
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "used": nn.BatchNorm1d(3, momentum=momentum),
            "frozen": nn.BatchNorm1d(3, momentum=momentum),
            "unused": nn.BatchNorm1d(3, momentum=momentum),
            "still": nn.BatchNorm1d(3, momentum=0.0),
            "none": nn.BatchNorm1d(3, track_running_stats=False),
            "instance": nn.InstanceNorm1d(3, track_running_stats=True),
        }
    )


def run(model, x):
    for name in ("used", "frozen", "still", "none"):
        model[name](x)
    model["instance"](x.T[None])


def statistics(model, name):
    return [model[name].running_mean.clone(), model[name].running_var.clone()]


@pytest.mark.parametrize("training", [True, False])
def test_layers_keep_their_statistics_if_frozen_unused_or_without_momentum(training):
    model = layers()
    for name in ("used", "frozen", "unused", "still", "instance"):
        model[name].running_mean.fill_(7.0)
        model[name].running_var.fill_(3.0)
    model.train(training)
    model["frozen"].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    data = batches(3)
    recompute_batch_norm(model, [lambda x=x: run(model, x) for x in data])
    for name in ("unused", "still", *(["frozen"] if training else [])):  # all in evaluation mode: no telling
        mean, var = statistics(model, name)
        assert (mean == 7.0).all(), name
        assert (var == 3.0).all(), name
    weights = torch.tensor([0.81, 0.9, 1.0])
    expected = (torch.stack([x.mean(0) for x in data]) * weights[:, None]).sum(0) / weights.sum()
    torch.testing.assert_close(model["used"].running_mean, expected)
    torch.testing.assert_close(model["instance"].running_mean, expected)
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_a_pass_that_fails_leaves_everything_as_it_was():
    model = layers().eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def broken():
        run(model, torch.randn(8, 3))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        recompute_batch_norm(model, [lambda: run(model, torch.randn(8, 3)), broken])
    assert not any(module.training for module in model.modules())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not any(module._forward_pre_hooks for module in model.modules())

    model = model_of()
    ema = EMA(model, decay=0.5, buffers="recompute")
    train_step(model, 1)
    ema.update(1)
    raw = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ZeroDivisionError):
        ema.swap_in(broken_recompute)
    assert not ema.swapped
    for key, value in model.state_dict().items():
        assert torch.equal(value, raw[key]), key


def broken_recompute():
    raise ZeroDivisionError
