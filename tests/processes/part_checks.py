"""Ranks that hold other tensors of one model: pipeline stages, experts; over gloo, started by test_parts.py."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from tests.processes.mesh_checks import UPDATES, full
from tests.processes.rank_checks import main
from tests.processes.rank_shards import fully_shard, on_all_ranks
from tests.support import reference
from weight_averaging.averages import EMA as EMADescription
from weight_averaging.averages import LAWA as LAWADescription
from weight_averaging.torch import EMA, LAWA, Averages
from weight_averaging.torch.model.tensors import spread

LAYERS, WIDTH = 6, 4


class Stage(nn.Module):
    """Some of the layers, under the names that they have in the whole model; the last stage has one tensor more."""

    def __init__(self, stage: int, stages: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = {str(number): nn.Linear(WIDTH, WIDTH + 2 * (number == LAYERS - 1)) for number in range(LAYERS)}
        here = range(LAYERS * stage // stages, LAYERS * (stage + 1) // stages)
        self.layers = nn.ModuleDict({str(number): layers[str(number)] for number in here})
        self.last = nn.ParameterDict({"scale": torch.ones(3)} if stage == stages - 1 else {})
        self.register_buffer("position", torch.full((2,), 1.0 * stage), persistent=False)

    def forward(self, x):
        for layer in self.layers.values():
            x = torch.tanh(layer(x))
        return x * self.last["scale"].sum() if "scale" in self.last else x


def make(model: nn.Module, group) -> list:
    return [
        LAWA(model, interval=1, window=3, model_parallel_group=group),
        EMA(model, decay=0.7, interval=2, model_parallel_group=group),
        Averages(
            model,
            [EMADescription(decay=0.5, interval=1), LAWADescription(window=2, interval=1)],
            model_parallel_group=group,
        ),
    ]


def train(model: nn.Module, averagers: list, steps: range, schedule=Schedule1F1B, optimizer=None) -> list[np.ndarray]:
    """Real pipelined updates; the weights of each, of this stage."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    stage = PipelineStage(model, rank, ranks, torch.device("cpu"))
    pipe = schedule(stage, n_microbatches=4, loss_fn=nn.functional.mse_loss)
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.5)
    seen = []
    for step in steps:
        x, y = torch.randn(2, 4, WIDTH, generator=torch.Generator().manual_seed(step))
        y = y.repeat(1, 2)[:, : WIDTH + 2]
        optimizer.zero_grad()
        pipe.step(*([x] if rank == 0 else []), **({"target": y} if rank == ranks - 1 else {}))
        optimizer.step()
        seen.append(full(model))
        for averager in averagers:
            averager.update(step)
    return seen


def averages(model: nn.Module, averagers: list) -> list[np.ndarray]:
    found = []
    for averager in averagers:
        with averager.averaged() as ready:
            assert ready
            found.append(full(model))
    return found


def of_all(of: list[np.ndarray]) -> list[np.ndarray]:
    """Arrays of all stages, one after the other."""
    return [np.concatenate(parts) for parts in zip(*on_all_ranks(of), strict=True)]


def pipeline(folder: str) -> None:
    """Each stage averages its tensors; a NaN in one stops all; state and file are of the whole model."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    model = Stage(rank, ranks)
    averagers = make(model, dist.group.WORLD)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    assert len(set(on_all_ranks(len(list(model.parameters()))))) > 1
    seen = train(model, averagers, range(1, UPDATES), optimizer=optimizer)
    seen += train(model, averagers, range(UPDATES, UPDATES + 1), ScheduleGPipe, optimizer)
    found = averages(model, averagers)
    np.testing.assert_allclose(found[0], reference.lawa(seen, 3), atol=1e-6)
    np.testing.assert_allclose(found[1], reference.ema(seen[1::2], 0.7), atol=1e-6)
    np.testing.assert_array_equal(full(model), seen[-1])
    assert on_all_ranks([a.snapshot_steps for a in averagers]) == [[[4, 5, 6], [6], [6]]] * ranks

    weight = next(model.parameters())
    good = weight.detach().clone()
    for bad in (0, ranks - 1):
        if rank == bad:
            weight.data.view(-1)[0] = float("nan")
        assert on_all_ranks([a.update(UPDATES + 2) for a in averagers]) == [[False] * 3] * ranks
        weight.data.copy_(good)
        for averager in averagers:
            averager.step = UPDATES
    np.testing.assert_array_equal(averages(model, averagers), found)

    for number, averager in enumerate(averagers[:2]):
        for size, count in ((10**9, 1), (200, 3)):
            place = Path(folder, f"whole_{number}_{count}")
            averager.save_average(place, max_shard_size=size)
            state = averager.average_state_dict(full=True)
            dist.barrier()
            files = sorted(place.glob("*.safetensors"))
            assert len(files) >= count
            written = {name: tensor for file in files for name, tensor in load_file(file).items()}
            assert len(written) == 2 * LAYERS + 1
            assert state.keys() == (written.keys() if rank == 0 else set())
            assert all(torch.equal(written[name], tensor) for name, tensor in state.items())
            for name, tensor in averager.average_state_dict().items():
                assert torch.equal(written[name], tensor), name
            if count > 1:
                index = json.loads((place / "model.safetensors.index.json").read_text())
                assert index["weight_map"].keys() == written.keys()
        with pytest.raises(
            FileExistsError if rank == 0 else RuntimeError, match=r"not an empty folder|could not write"
        ):
            averager.save_average(place)

    with averagers[0].averaged(), pytest.raises(RuntimeError, match="call swap_out"):
        averagers[0].state_dict()
    state = {"model": model.state_dict(), "averagers": [averager.state_dict() for averager in averagers]}
    dcp.save(state, checkpoint_id=f"{folder}/state")
    torch.save(state["averagers"], f"{folder}/state_of_{rank}.pt")
    on = train(model, averagers, range(UPDATES + 1, UPDATES + 4), optimizer=optimizer)
    whole = of_all([*found, *averages(model, averagers), on[-1]])
    if rank == 0:
        np.savez(Path(folder, "expected.npz"), *whole)


def go_on(folder: str, how: str) -> None:
    """From the state of a run of any number of stages: the same average, and the same again after more updates."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    model = Stage(rank, ranks)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    averagers = make(model, dist.group.WORLD)
    state = {"model": model.state_dict(), "averagers": [averager.state_dict() for averager in averagers]}
    dcp.load(state, checkpoint_id=f"{folder}/state")
    saved = state["averagers"]
    if how == "files":
        saved = torch.load(f"{folder}/state_of_{rank}.pt", weights_only=True)
        other = torch.load(f"{folder}/state_of_{(rank + 1) % ranks}.pt", weights_only=True)
        with pytest.raises(ValueError, match="saved by another rank, and has no vector of la"):
            averagers[0].load_state_dict(other[0])
    for averager, one in zip(averagers, saved, strict=True):
        averager.load_state_dict(one)
    model.load_state_dict(state["model"])
    expected = list(np.load(Path(folder, "expected.npz")).values())
    for mine, theirs in zip(of_all(averages(model, averagers)), expected[:3], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    on = train(model, averagers, range(UPDATES + 1, UPDATES + 4))
    for mine, theirs in zip(of_all([*averages(model, averagers), on[-1]]), expected[3:], strict=True):
        np.testing.assert_array_equal(mine, theirs)


def a_killed_stage(folder: str) -> None:
    """The last stage dies in the middle of a run; the others' calls end in an error, and what they hold is whole."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    model = Stage(rank, ranks)
    averagers = make(model, dist.group.WORLD)
    state = {"model": model.state_dict(), "averagers": [averager.state_dict() for averager in averagers]}
    dcp.load(state, checkpoint_id=f"{folder}/state")
    model.load_state_dict(state["model"])
    for averager, one in zip(averagers, state["averagers"], strict=True):
        averager.load_state_dict(one)
    train(model, averagers, range(UPDATES + 1, UPDATES + 2))
    dist.barrier()
    if rank == ranks - 1:
        os._exit(0)
    raw = full(model)
    with pytest.raises(RuntimeError, match=r"(?i)closed|reset|timed? ?out"):
        averagers[0].update(UPDATES + 2)
    np.testing.assert_array_equal(full(model), raw)
    with averagers[0].averaged() as ready:
        assert ready
    Path(folder, f"survived_{rank}").touch()
    print("ranks agree", flush=True)
    os._exit(0)


def stages_of(kind: str, folder: str) -> None:
    """Stages of shards (FSDP2), and of replicas (DDP), on a mesh of two dimensions; as the whole model, bit for bit."""
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("pipeline", "data"))
    stage = mesh["pipeline"].get_local_rank()
    model, plain, groups = Stage(stage, 2), Stage(0, 1), {"model_parallel_group": mesh["pipeline"].get_group()}
    if kind == "fsdp2":
        fully_shard(model, mesh=mesh["data"])
    else:
        groups["process_group"] = mesh["data"].get_group()

    def made(model: nn.Module, groups: dict) -> list:
        return [
            LAWA(model, interval=1, window=3, **groups),
            EMA(model, decay=0.7, interval=2, **groups),
            EMA(model, decay=0.7, dtype=torch.float64, **groups),
        ]

    averagers, others = made(model, groups), made(plain, {})

    def randomised(step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        here = dict(model.named_parameters())
        for name, parameter in plain.named_parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
            if name in here:
                here[name].data.copy_(spread(parameter.data, here[name]))

    def same(averagers: list) -> None:
        names = on_all_ranks(sorted(dict(model.named_parameters())))
        for averager, whole in zip(averagers, others, strict=True):
            expected, found = whole.average_state_dict(), averager.average_state_dict(full=True)
            assert found.keys() == (expected.keys() if dist.get_rank() == 0 else set()), names
            assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
            with averager.averaged(), whole.averaged():
                for name, parameter in model.named_parameters():
                    here = parameter.full_tensor() if kind == "fsdp2" else parameter
                    assert torch.equal(here, plain.get_parameter(name))

    for step in range(1, UPDATES + 1):
        randomised(step)
        for averager in [*averagers, *others]:
            averager.update(step)
    same(averagers)
    for bad in range(dist.get_world_size() if kind == "fsdp2" else 0):
        here = [p.to_local() for p in model.parameters()]
        if dist.get_rank() == bad:
            next(t for t in here if t.numel()).detach().view(-1)[0] = float("nan")
        assert on_all_ranks(averagers[0].update(UPDATES + 1 + bad)) == [False] * dist.get_world_size()
        randomised(UPDATES)
    averagers[0].step = UPDATES
    path = f"{folder}/stages_of_{kind}"
    dcp.save({"averagers": [averager.state_dict() for averager in averagers]}, checkpoint_id=path)
    again = made(model, groups)
    state = {"averagers": [averager.state_dict() for averager in again]}
    dcp.load(state, checkpoint_id=path)
    for averager, one in zip(again, state["averagers"], strict=True):
        averager.load_state_dict(one)
    same(again)


class Experts(nn.Module):
    """A router that all ranks have, and experts of this rank, under the names that `named` says."""

    def __init__(self, named: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router = nn.Linear(WIDTH, 8)
        here = 1 + dist.get_rank()  # other numbers of tensors
        first = 0 if named == "from zero" else 10 * dist.get_rank()
        torch.manual_seed(dist.get_rank())
        self.experts = nn.ModuleDict({str(first + number): nn.Linear(WIDTH, 3) for number in range(here)})


def experts(folder: str) -> None:
    """Each rank has other experts. Where two count them from zero, no state mixes them up, and no file is written."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for named in ("apart", "from zero"):
        model = Experts(named)
        averagers = make(model, dist.group.WORLD)
        seen = []
        for step in range(1, UPDATES + 1):
            for name, parameter in model.named_parameters():
                generator = torch.Generator().manual_seed(100 * step + (rank if "experts" in name else 50))
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
            seen.append(full(model))
            assert averagers[0].update(step)
            assert averagers[1].update(step) is (step % 2 == 0)
            assert averagers[2].update(step)
        found = averages(model, averagers)
        np.testing.assert_allclose(found[0], reference.lawa(seen, 3), atol=1e-6)
        np.testing.assert_allclose(found[1], reference.ema(seen[1::2], 0.7), atol=1e-6)
        path = f"{folder}/experts_{named}"
        dcp.save({"averagers": [averager.state_dict() for averager in averagers]}, checkpoint_id=path)
        again = make(model, dist.group.WORLD)
        state = {"averagers": [averager.state_dict() for averager in again]}
        dcp.load(state, checkpoint_id=path)
        for averager, one in zip(again, state["averagers"], strict=True):
            averager.load_state_dict(one)
        for mine, theirs in zip(averages(model, again), found, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        place = Path(folder, f"file {named}")
        if named == "from zero":
            with pytest.raises(ValueError, match=r"different tensors.* under one name"):
                again[0].save_average(place)
            with pytest.raises(ValueError, match=r"different tensors.* under one name"):
                again[0].average_state_dict(full=True)
            assert not place.exists()
        else:
            again[0].save_average(place)
            dist.barrier()
            written = load_file(place / "model.safetensors")
            assert len(written) == 2 + 2 * sum(1 + other for other in range(ranks))
            for name, tensor in again[0].average_state_dict().items():
                assert torch.equal(written[name], tensor), name


if __name__ == "__main__":
    arguments = int(sys.argv[1]), sys.argv[2], sys.argv[3:], globals()
    torch.multiprocessing.start_processes(main, arguments, nprocs=arguments[0], start_method="fork")
    print("ranks agree")
