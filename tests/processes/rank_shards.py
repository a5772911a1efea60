"""What several ranks check together of sharded models; see rank_checks.py."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from tests.support import reference
from tests.support.small_models import flat
from weight_averaging.averages import EMA as EMADescription
from weight_averaging.averages import LAWA as LAWADescription
from weight_averaging.averages import SnapshotError
from weight_averaging.offline.reading.snapshots import Snapshots
from weight_averaging.offline.recording import SnapshotWriter
from weight_averaging.torch import EMA, LAWA, Averages
from weight_averaging.torch.model.tensors import whole

try:
    from torch.distributed.fsdp import fully_shard

    RUNS_ON_CPU = True
except ImportError:  # torch 2.5, where FSDP2 shards a model on a CPU but does not run it
    from torch.distributed._composable.fsdp import fully_shard

    RUNS_ON_CPU = False


def on_all_ranks(value):
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


class Net(nn.Module):
    """With a tensor that no number of ranks divides evenly, and one with fewer rows than ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 5)
        self.norm = nn.BatchNorm1d(5)
        self.last = nn.Linear(5, 1)

    def forward(self, x):
        return self.last(self.norm(self.first(x)))


def sharded_model(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    model = Net()
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return model


def full(model: nn.Module) -> np.ndarray:
    tensors = [p.detach() for p in model.parameters()]
    return np.concatenate([whole(tensor).clone().numpy().ravel() for tensor in tensors])


def train(model: nn.Module, averagers: list, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for p in model.parameters():
                value = torch.randn(p.shape, generator=generator)  # the same whatever the number of ranks
                if hasattr(p, "device_mesh"):
                    from torch.distributed.tensor import distribute_tensor

                    value = distribute_tensor(value, p.device_mesh, p.placements)
                p.copy_(value)
            for buffer in (model.norm.running_mean, model.norm.running_var):
                buffer.copy_(torch.rand(buffer.shape, generator=generator))
        for averager in averagers:
            averager.update(step)


def averages(model: nn.Module, averagers: list) -> list[np.ndarray]:
    result = []
    for averager in averagers:
        with averager.averaged():
            model.eval()
            if RUNS_ON_CPU:
                model(torch.ones(2, 3))  # FSDP2 gathers the parameters and may keep them so
            result.append(full(model))
    return result


def make(model: nn.Module) -> list:
    return [
        LAWA(model, interval=1, window=4),
        EMA(model, decay=0.6, interval=2),
        Averages(model, [EMADescription(decay=0.5, interval=1), LAWADescription(window=2, interval=1)]),
        EMA(model, decay=0.9, dtype=torch.float64),
    ]


def held(averager) -> np.ndarray:
    """All that an averager of one recursion holds, with all its digits."""
    (vector,) = averager.state_dict()["tracks"][0]["vectors"]
    if not isinstance(vector, dict):
        return vector.clone().numpy()
    return np.concatenate([whole(tensor).clone().numpy().ravel() for tensor in vector.values()])


def check_equal(a: list[np.ndarray], b: list[np.ndarray]) -> None:
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def shards_save(folder: str, steps: int) -> None:
    """FSDP2: shards are averaged as the whole model is on one rank; the state goes through a distributed checkpoint."""
    model = sharded_model()
    averagers = make(model)
    train(model, averagers, range(1, steps + 1))
    raw = full(model)
    plain = Net()
    plain_averagers = make(plain)
    train(plain, plain_averagers, range(1, steps + 1))
    check_equal(averages(model, averagers), averages(plain, plain_averagers))
    np.testing.assert_array_equal(full(model), raw)

    if dist.get_rank() == 0:  # a NaN in one shard: no rank takes the snapshot in
        model.norm.weight.detach().to_local().view(-1)[:1] = float("nan")
    assert not averagers[0].update(steps + 1)
    model.norm.weight.detach().to_local().fill_(1.0)
    assert averagers[1].swap_in()
    with pytest.raises(RuntimeError, match="call swap_out"):
        averagers[1].state_dict()
    averagers[1].swap_out()
    averagers[0].step = steps
    dcp.save({"averagers": [a.state_dict() for a in averagers]}, checkpoint_id=folder)


def shards_load(folder: str, steps: int) -> None:
    """What another number of ranks saved, and training on from there."""
    model = sharded_model(seed=1)
    averagers = make(model)
    state = {"averagers": [a.state_dict() for a in averagers]}
    dcp.load(state, checkpoint_id=folder)
    for averager, loaded in zip(averagers, state["averagers"], strict=True):
        averager.load_state_dict(loaded)
    plain = Net()
    plain_averagers = make(plain)
    train(plain, plain_averagers, range(1, steps + 1))
    train(model, [], range(steps, steps + 1))
    assert [a.step for a in averagers] == [steps] * len(averagers)
    np.testing.assert_array_equal(held(averagers[-1]), held(plain_averagers[-1]))
    check_equal(averages(model, averagers), averages(plain, plain_averagers))
    train(plain, plain_averagers, range(steps + 1, steps + 4))
    train(model, averagers, range(steps + 1, steps + 4))
    check_equal(averages(model, averagers), averages(plain, plain_averagers))


def empty_shards() -> None:
    """A model so small that some ranks hold no element of it; no rank waits for another in vain."""
    model = nn.Linear(4, 1, bias=False)
    whole = nn.Linear(4, 1, bias=False)
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    kinds = [
        lambda m: LAWA(m, interval=1, window=2),
        lambda m: EMA(m, decay=0.5, check_finite=False),
        lambda m: EMA(m, share=0.5),
        lambda m: Averages(m, [LAWADescription(window=2, interval=1), EMADescription(decay=0.5, interval=2)]),
    ]
    sharded, plain = [kind(model) for kind in kinds], [kind(whole) for kind in kinds]
    held = on_all_ranks(sharded[0]._weights.numel)
    assert sum(held) == 4, held
    assert 0 in held, f"every rank holds something: {held}"
    for step in range(1, 6):
        value = torch.randn(1, 4, generator=torch.Generator().manual_seed(step))
        with torch.no_grad():
            whole.weight.copy_(value)
            local = model.weight.to_local()
            local.copy_(value if local.numel() else value[:0])
        for averager in [*sharded, *plain]:
            averager.update(step)
    for averager, other in zip(sharded, plain, strict=True):
        with averager.averaged(), other.averaged():
            np.testing.assert_array_equal(full(model), flat(whole))
        state = averager.average_state_dict()["weight"].full_tensor()
        assert torch.equal(state, other.average_state_dict()["weight"])
        again = type(averager)(model, **arguments_of(averager))
        again.load_state_dict(averager.state_dict())
        with again.averaged(), other.averaged():
            np.testing.assert_array_equal(full(model), flat(whole))


def arguments_of(averager) -> dict:
    if isinstance(averager, Averages):
        return {"averages": averager.averages}
    if isinstance(averager, LAWA):
        return {"interval": 1, "window": 2}
    return {"decay": averager.decay, "horizon": averager.horizon}


def fsdp1() -> None:
    """FSDP1, with and without the original parameters: every rank averages its piece of the flat vector."""
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

    for original in (True, False):
        for strategy in (ShardingStrategy.FULL_SHARD, ShardingStrategy.SHARD_GRAD_OP):
            torch.manual_seed(0)
            net = Net()
            model = FullyShardedDataParallel(
                net, use_orig_params=original, device_id=torch.device("cpu"), sharding_strategy=strategy
            )
            with (
                tempfile.TemporaryDirectory() as folder,
                SnapshotWriter(folder, interval=1) as writer,
                pytest.raises(SnapshotError, match="cannot have whole weights under FSDP1"),
            ):
                writer.update(1, model)
            averagers = [LAWA(model, interval=1, window=2), EMA(model, decay=0.5)]
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            snapshots = []
            for step in range(1, 5):
                model(torch.ones(2, 3)).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
                for averager in averagers:
                    assert averager.update(step)
                snapshots.append(whole_of(model))
            for averager, expected in (
                (averagers[0], reference.lawa(snapshots, 2)),
                (averagers[1], reference.ema(snapshots, 0.5)),
            ):
                with averager.averaged():
                    model.eval()
                    with torch.no_grad():
                        model(torch.ones(2, 3))  # gathers the parameters, and may keep them so
                    np.testing.assert_allclose(whole_of(model), expected, atol=1e-6)
                np.testing.assert_array_equal(whole_of(model), snapshots[-1])
                model.train()
                with pytest.raises(RuntimeError, match="cannot be had under FSDP1"):
                    averager.average_state_dict()
                assert not any("_fsdp_wrapped_module" in name for name in averager.state_dict()["names"])
            if dist.get_rank() == 0:  # a NaN in one piece: no rank takes the snapshot in
                next(p for p in model.parameters() if p.numel()).detach().view(-1)[:1] = float("nan")
            assert not averagers[0].update(5)
            with pytest.raises(ValueError, match="under FSDP every rank averages its own shards"):
                LAWA(model, interval=1, window=2, process_group=dist.group.WORLD)


def whole_of(model: nn.Module) -> np.ndarray:
    from torch.distributed.fsdp import FullyShardedDataParallel

    with FullyShardedDataParallel.summon_full_params(model, writeback=False):
        return np.concatenate([p.detach().double().numpy().ravel() for p in model.parameters()])


def snapshots_of_shards(folder: str) -> None:
    """The first rank writes whole tensors, under the names of the plain model."""
    model = sharded_model()
    writer = SnapshotWriter(Path(folder, "snapshots"), interval=2)
    expected = {}
    for step in range(1, 5):
        with torch.no_grad():
            for number, parameter in enumerate(model.parameters()):
                parameter.fill_(step + number / 7)
        state = {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in model.state_dict().items()}
        if writer.update(step, model):
            expected[step] = {name: tensor.clone() for name, tensor in state.items()}
    lawa = LAWA(model, interval=1, window=1)
    lawa.update(1)
    with lawa.averaged(), pytest.raises(RuntimeError, match="while the average of LAWA is in the model"):
        writer.update(6, model)
    writer.close()
    dist.barrier()
    found = Snapshots(Path(folder, "snapshots"))
    assert found.steps == list(expected) == [2, 4]
    for step, state in found.stream(found.steps):
        assert state.keys() == expected[step].keys()
        for name, tensor in state.items():
            assert torch.equal(tensor, expected[step][name]), name
