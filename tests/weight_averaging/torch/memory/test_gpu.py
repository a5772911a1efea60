"""What only a GPU shows: that averages there are those of the CPU, that nobody waits, that memory does not grow."""

import copy
import io

import pytest
import torch
from torch import nn

from submissions.recipe.pytorch.nadamw import NadamW
from weight_averaging.torch import EMA, LAWA

pytestmark = pytest.mark.gpu

KINDS = pytest.mark.parametrize(
    "make",
    [
        lambda model, **options: EMA(model, decay=0.7, **options),
        lambda model, **options: EMA(model, decay=0.7, placement="host", **options),
        lambda model, **options: LAWA(model, interval=2, window=3, placement="device", **options),
        lambda model, **options: LAWA(model, interval=2, window=3, placement="host", **options),
    ],
    ids=["ema, device", "ema, host", "lawa, device", "lawa, host"],
)


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 300), nn.BatchNorm1d(300), nn.ReLU(), nn.Linear(300, 7)).to(dtype)


def randomise(models, seed):
    """The same values in all."""
    generator = torch.Generator().manual_seed(seed)
    for tensors in zip(*(tuple(m.state_dict().values()) for m in models), strict=True):
        if tensors[0].is_floating_point():
            values = torch.randn(tensors[0].shape, generator=generator)
            for tensor in tensors:
                tensor.copy_(values)


def average(averager, model):
    with averager.averaged() as there:
        assert there
        return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_averages_are_those_of_the_cpu(make, dtype):
    here, there = network(dtype), network(dtype).cuda()
    mine, theirs = make(here), make(there)
    for step in range(1, 10):
        randomise([here, there], step)
        mine.update(step)
        theirs.update(step)
    raw = copy.deepcopy(there.state_dict())
    tolerance = {"rtol": 1e-6, "atol": 1e-7} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-3}
    for (name, value), other in zip(average(mine, here).items(), average(theirs, there).values(), strict=True):
        torch.testing.assert_close(other, value, **tolerance, msg=lambda text, name=name: f"{name}: {text}")
    for name, value in there.state_dict().items():
        assert torch.equal(value, raw[name]), f"{name} is not the raw one after a swap"


@KINDS
@pytest.mark.parametrize("check_finite", [True, False])
def test_update_waits_for_nothing(make, check_finite):
    model = network().cuda()
    averager = make(model, check_finite=check_finite)
    for step in range(1, 9):  # memory is reserved, the window is full
        averager.update(step)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(9, 40):
            averager.update(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert averager.ready


def test_a_wait_would_be_noticed():
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing"):
            torch.ones(1, device="cuda").item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@KINDS
def test_memory_does_not_grow(make):
    model = network().cuda()
    averager = make(model)
    held = []
    for step in range(1, 1011):
        averager.update(step)
        averager.swap_in()
        averager.swap_out()
        if step in (10, 1010):
            torch.cuda.synchronize()
            held.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert held[0] == held[1]


@KINDS
@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_a_state_goes_through_a_file_to_either_device(make, place):
    model, twin = network().cuda(), network().cuda()
    averager, other = make(model), make(twin)
    for step in range(1, 8):
        randomise([model, twin], step)
        averager.update(step)
    file = io.BytesIO()
    torch.save(averager.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True, map_location=place))
    for step in range(8, 12):
        randomise([model, twin], step)
        averager.update(step)
        other.update(step)
    assert other.snapshot_steps == averager.snapshot_steps
    for value, again in zip(average(averager, model).values(), average(other, twin).values(), strict=True):
        assert torch.equal(value, again)
    moved = [v.device.type for track in other.state_dict()["tracks"] for v in track["vectors"]]
    assert set(moved) == {v.device.type for track in averager.state_dict()["tracks"] for v in track["vectors"]}


@KINDS
def test_training_is_that_without_averaging(make):
    inputs = torch.randn(64, 40, generator=torch.Generator().manual_seed(1)).cuda()

    def trained(averaging):
        model = network().cuda()
        optimizer = NadamW(model.parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
        averager = make(model) if averaging else None
        for step in range(1, 30):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
            if averager is not None:
                averager.update(step)
                if step % 7 == 0:
                    with averager.averaged():
                        model.eval()
                        model(inputs)
                        model.train()
        return model.state_dict()

    for (name, value), other in zip(trained(True).items(), trained(False).values(), strict=True):
        assert torch.equal(value, other), name


def test_nadamw_is_that_of_the_cpu():
    here, there = network(), network().cuda()
    optimizers = [NadamW(m.parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1) for m in (here, there)]
    for step in range(1, 20):
        generator = torch.Generator().manual_seed(step)
        for a, b in zip(here.parameters(), there.parameters(), strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.cuda()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(here.parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=1e-4, atol=1e-6)
