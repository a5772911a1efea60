"""A training step of several processes with averaging over the same step without; see training_step.py."""

import os
import socket
import statistics
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from weight_averaging.torch import EMA, LAWA, Averager

INTERVAL, WINDOW = 64, 20
WIDTH, LAYERS, BATCH = 256, 4, 32
KINDS = ("ddp", "fsdp2", "tensor", "fsdp2_tensor")
Row = tuple[str, float, float, float, float]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))  # type: ignore[no-any-return]


def model_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model, ranks = nn.Sequential(*(Block() for _ in range(LAYERS))), dist.get_world_size()
    if kind == "ddp":
        return DistributedDataParallel(model)
    pairs = 2 if kind == "fsdp2_tensor" else ranks if kind == "tensor" else 1
    mesh = init_device_mesh("cpu", (ranks // pairs, pairs), mesh_dim_names=("data", "model"))
    if pairs > 1:
        for block in model:
            parallelize_module(block, mesh["model"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    if kind != "tensor":
        for module in [*model, model]:
            fully_shard(module, mesh=mesh["data"])
    return model


def bytes_of(averager: Averager) -> int:
    """What it holds on this rank, with the raw weights during an evaluation."""
    tracks = sum(t.numel() * t.element_size() for track in averager._tracks for t in track.slots())
    return tracks + sum(t.numel() * t.element_size() for t in averager._weights.tensors())


def turn(
    model: nn.Module, optimizer: torch.optim.Optimizer, averager: Averager | None, first: int
) -> tuple[float, float]:
    """Seconds of an interval's steps on this rank, and those of them in `update`."""
    inside = 0.0
    dist.barrier()
    start = time.perf_counter()
    for step in range(first, first + INTERVAL):
        optimizer.zero_grad()
        model(torch.ones(BATCH, WIDTH)).square().mean().backward()
        optimizer.step()
        if averager is not None:
            begin = time.perf_counter()
            averager.update(step)
            inside += time.perf_counter() - begin
    return time.perf_counter() - start, inside


def rows(kind: str, rounds: int) -> list[Row]:
    """For each average: ms of a step, medians of the ratio of a turn and of that in `update`, and bytes of a rank."""
    model = model_of(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    options = {"process_group": dist.group.WORLD} if kind == "ddp" else {}
    averagers: dict[str, Averager | None] = {
        "none": None,
        f"LAWA of {WINDOW}": LAWA(model, interval=INTERVAL, window=WINDOW, **options),
        "EMA": EMA(model, decay=0.9, interval=INTERVAL, **options),
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in averagers}
    for number in range(rounds + 1):
        for name, averager in averagers.items():
            taken[name].append(turn(model, optimizer, averager, 1 + number * INTERVAL))
    base = [seconds for seconds, _ in taken["none"][1:]]  # the first turn warms up
    found = []
    for name, averager in averagers.items():
        turns = taken[name][1:]
        ratio = statistics.median(seconds / plain for (seconds, _), plain in zip(turns, base, strict=True))
        hooks = statistics.median(seconds / (seconds - inside) for seconds, inside in turns)
        step = 1e3 * statistics.median(seconds for seconds, _ in turns) / INTERVAL
        held = 0 if averager is None else bytes_of(averager)
        worst: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(worst, (step, ratio, hooks, held))
        found.append((name, *(max(rank[place] for rank in worst) for place in range(4))))
    return found


def main(rank: int, ranks: int, port: int, kind: str, rounds: int, results: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    found = rows(kind, rounds)
    if rank == 0:
        results.put(found)
    dist.destroy_process_group()


def measure(kind: str, ranks: int, rounds: int) -> list[Row]:
    """In processes of their own, of one thread each; the highest figures of any rank."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    torch.multiprocessing.spawn(main, args=(ranks, port, kind, rounds, results), nprocs=ranks)
    return results.get()  # type: ignore[no-any-return]
