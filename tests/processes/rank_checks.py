"""What several ranks check together; started by test_ranks.py, one process a rank, over gloo."""

import logging
import os
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from tests.support import reference
from tests.support.small_models import flat, floats, model_of, randomise, saved, value_of
from weight_averaging import placement
from weight_averaging.averages import EMA as EMADescription
from weight_averaging.averages import LAWA as LAWADescription
from weight_averaging.averages import SnapshotError
from weight_averaging.offline.reading.snapshots import Snapshots
from weight_averaging.offline.recording import SnapshotWriter
from weight_averaging.torch import EMA, LAWA, Averages, collector

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


def replicas(when: str = "at once") -> None:
    """DDP: one window, the same average everywhere, whatever happens in between.

    Args:
        when: `"at once"` or, as on an accelerator, `"later"` a snapshot is known to be finite.
    """
    later = when == "later"
    collector.defers = lambda device: later
    group = dist.group.WORLD
    model = DistributedDataParallel(model_of())
    lawa = LAWA(model, interval=1, window=3, process_group=group)
    grid = Averages(
        model, [LAWADescription(window=2, interval=1), EMADescription(decay=0.5, interval=2)], process_group=group
    )
    alone = LAWA(model, interval=1, window=3)
    held = on_all_ranks(len(lawa._tracks[0].slots()))
    assert held == [3 + later] + [0] * (dist.get_world_size() - 1), f"windows held: {held}"

    choices = random.Random(0)  # the same on every rank
    snapshots, step = [], 0
    for _ in range(60):
        action = choices.choice(["update", "update", "update", "evaluate", "reload", "not finite"])
        if action == "update":
            step += 1
            randomise(model, step)
            snapshots.append(flat(model))
            assert lawa.update(step)
            assert alone.update(step)
            grid.update(step)
        elif action == "not finite":  # on one rank alone: all must leave it out
            step += 1
            raw = [p.detach().clone() for p in model.parameters()]
            if dist.get_rank() == dist.get_world_size() - 1:
                with torch.no_grad():
                    next(model.parameters()).view(-1)[0] = float("nan")
            assert lawa.update(step) is later
            assert grid.update(step) is later
            with torch.no_grad():
                torch._foreach_copy_(list(model.parameters()), raw)
            alone.step = step
            if choices.random() < 0.5:
                assert step not in lawa.snapshot_steps
        elif action == "reload":  # from the state of the first rank, as the official harness does
            states = on_all_ranks((saved(lawa), saved(grid)))
            lawa = LAWA(model, interval=1, window=3, process_group=group)
            grid = Averages(model, grid.averages, process_group=group)
            lawa.load_state_dict(states[0][0])
            grid.load_state_dict(states[0][1])
            if dist.get_rank() == 0 and len(snapshots):
                with pytest.raises(ValueError, match="a rank that holds no snapshots"):
                    lawa.load_state_dict(states[-1][0])
        else:
            raw = flat(model)
            value = value_of(lawa, model)
            for average in grid.averages:
                grid.select(average)
                values = on_all_ranks(value_of(grid, model).tobytes())
                assert len(set(values)) == 1, f"{average} differs between ranks"
            assert len(set(on_all_ranks(value.tobytes()))) == 1, "averages differ between ranks"
            np.testing.assert_array_equal(value, value_of(alone, model))
            expected = reference.lawa(snapshots, 3)
            np.testing.assert_allclose(value, raw if expected is None else expected, atol=1e-6)
            np.testing.assert_array_equal(flat(model), raw)


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
    return np.concatenate(
        [(t.full_tensor() if hasattr(t, "full_tensor") else t).clone().numpy().ravel() for t in tensors]
    )


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
    ]


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
    assert [a.step for a in averagers] == [steps] * 3
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
        lambda m: EMA(m, horizon=0.5),
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


def host_ema_of_replicas() -> None:
    """In host memory the first rank holds it for all."""
    group = dist.group.WORLD
    model = DistributedDataParallel(model_of())
    ema = EMA(model, decay=0.5, placement="host", process_group=group)
    alone = EMA(model, decay=0.5)
    assert on_all_ranks(len(ema._tracks[0].slots())) == [1] + [0] * (dist.get_world_size() - 1)
    for step in range(1, 6):
        randomise(model, step)
        assert ema.update(step)
        assert alone.update(step)
        if step == 3:
            state = on_all_ranks(saved(ema))[0]
            ema = EMA(model, decay=0.5, placement="host", process_group=group)
            ema.load_state_dict(state)
    np.testing.assert_array_equal(value_of(ema, model), value_of(alone, model))
    for name, value in ema.average_state_dict().items():
        assert torch.equal(value, alone.average_state_dict()[name]), name
    other = model_of(seed=5)
    assert ema.copy_to(other)
    np.testing.assert_array_equal(flat(other), value_of(alone, model))


def statistics_of_replicas(placement: str) -> None:
    """Batch norm sees each rank's own batches, and the average is one."""
    model = DistributedDataParallel(model_of(), broadcast_buffers=False)
    grid = Averages(
        model,
        [EMADescription(decay=0.5, interval=1), LAWADescription(window=2, interval=1)],
        placement=placement,
        process_group=dist.group.WORLD,
    )
    raw = []
    for step in (1, 2, 3):
        randomise(model, step)
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.add_(dist.get_rank())
        assert grid.update(step)
        raw = flat(model)
    for average in grid.averages:
        grid.select(average)
        first, *others = on_all_ranks(value_of(grid, model))
        for other in others:
            np.testing.assert_array_equal(other, first)
        first, *others = on_all_ranks({name: t.tolist() for name, t in grid.average_state_dict().items()})
        assert all(other == first for other in others)
        copied = model_of(seed=5).double()
        assert grid.copy_to(copied)
        np.testing.assert_allclose(flat(copied), value_of(grid, model))
        np.testing.assert_array_equal(flat(model), raw)


def memory_of_ranks() -> None:
    """What all ranks of a machine take must fit, of shards; of replicas one holds it, or a warning says so."""
    os.environ["LOCAL_WORLD_SIZE"] = str(dist.get_world_size())
    placement.free_host_bytes = lambda: 100_000
    sharded, replica = sharded_model(), model_of()
    of_one = 4 * sum(t.to_local().numel() if hasattr(t, "to_local") else t.numel() for t in floats(sharded))
    assert LAWA(sharded, interval=1, window=40_000 // of_one)
    with pytest.raises(MemoryError, match="on each of 2 ranks here"):
        LAWA(sharded, interval=1, window=60_000 // of_one)
    window = 60_000 // (4 * sum(t.numel() for t in floats(replica)))
    with Warned() as warned:
        assert LAWA(replica, interval=1, window=window, process_group=dist.group.WORLD)
        assert not warned.text
        assert LAWA(replica, interval=1, window=window)
    assert "on each of 2 ranks here, if all make one" in warned.text
    del os.environ["LOCAL_WORLD_SIZE"]


class Warned(logging.Handler):
    """What the library warns of in a block."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage()

    def __enter__(self) -> "Warned":
        self.setLevel(logging.WARNING)
        logging.getLogger("weight_averaging").addHandler(self)
        return self

    def __exit__(self, *exception: object) -> None:
        logging.getLogger("weight_averaging").removeHandler(self)


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


def main(rank: int, ranks: int, folder: str, checks: list[str], where: dict | None = None) -> None:
    """Args: `checks` are names of functions in `where`, with their arguments behind colons."""
    torch.set_num_threads(1)
    store = Path(folder, f"store_{os.getppid()}")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    for check in checks:
        name, *arguments = check.split(":")
        (where or globals())[name](*(int(x) if x.isdigit() else x for x in arguments))
    dist.destroy_process_group()


if __name__ == "__main__":
    arguments = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    torch.multiprocessing.start_processes(main, arguments, nprocs=arguments[0], start_method="fork")
    print("ranks agree")
