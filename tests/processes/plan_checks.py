"""Bytes that averaging adds to each rank, beside those of `weight-averaging plan`; started by test_plan_ranks.py."""

import ctypes
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from benchmarks.timing import resident
from tests.processes.rank_checks import main
from tests.processes.rank_shards import fully_shard, on_all_ranks
from weight_averaging.cli.costs import Machine, Run, cost
from weight_averaging.torch import EMA, LAWA

WIDTH, LAYERS, WINDOW = 1536, 8, 3
held_on_to: list[object] = []
HOW = {  # arguments of `plan`, from the number of ranks
    "replicas": lambda ranks: {},
    "fsdp2": lambda ranks: {"zero": 3},
    "tensor": lambda ranks: {"tensor_parallel": ranks},
    "fsdp2_tensor": lambda ranks: {"zero": 3, "tensor_parallel": 2},
    "hsdp": lambda ranks: {"shards": 2},
}


def spread_over(kind: str) -> nn.Module:
    model, ranks = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))), dist.get_world_size()
    plan = {str(number): ColwiseParallel() for number in range(LAYERS)}
    if kind == "fsdp2":
        fully_shard(model, mesh=init_device_mesh("cpu", (ranks,)))
    elif kind == "tensor":
        parallelize_module(model, init_device_mesh("cpu", (ranks,)), plan)
    elif kind in ("fsdp2_tensor", "hsdp"):
        mesh = init_device_mesh("cpu", (ranks // 2, 2), mesh_dim_names=("data", "model"))
        if kind == "hsdp":
            fully_shard(model, mesh=mesh)
        else:
            parallelize_module(model, mesh["model"], plan)
            fully_shard(model, mesh=mesh["data"])
    return model


def bytes_a_rank(kind: str) -> None:
    """What each rank holds after an evaluation is what is reckoned, but for 12 MB in which blocks are worked on."""
    ranks = dist.get_world_size()
    model = spread_over(kind)
    held_on_to.append(model)
    params = LAYERS * WIDTH**2
    run = Run(params=params, ranks=ranks, window=WINDOW, **HOW[kind](ranks))
    options = {"process_group": dist.group.WORLD} if kind == "replicas" else {}
    warm = EMA(nn.Linear(300, 300), decay=0.5)  # threads, buffers of the allocator
    warm.update(1)
    dist.all_reduce(torch.zeros(1))
    for average in ("lawa", "ema"):
        ctypes.CDLL(None).malloc_trim(0)  # what is freed already would be used again, unseen
        before = resident()
        kind_of = {"interval": 1, "window": WINDOW} if average == "lawa" else {"decay": 0.9}
        averager = (LAWA if average == "lawa" else EMA)(model, **kind_of, **options)
        for step in range(1, WINDOW + 2):
            averager.update(step)
        averager.swap_in()
        averager.swap_out()
        found = on_all_ranks(resident() - before)
        paper = cost(average, "device", run, Machine())
        # Beside a CPU's model there is no spare snapshot, and of replicas the first one holds the window.
        most = paper.evaluation - (4 * run.weights if average == "lawa" else 0)
        least = 4 * run.weights if run.parts == 1 and average == "lawa" else most
        for rank, held in enumerate(found):
            expected = least if rank else most
            assert abs(held - expected) < 12e6 + 0.01 * expected, (kind, average, found, expected)
        held_on_to.append(averager)


if __name__ == "__main__":
    arguments = int(sys.argv[1]), sys.argv[2], sys.argv[3:], globals()
    torch.multiprocessing.start_processes(main, arguments, nprocs=arguments[0], start_method="fork")
    print("ranks agree")
