"""Sharded checkpoints loaded on several ranks; started by offline/writing/test_by_pieces.py."""

import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from tests.processes.rank_checks import main


def loads(folder: str, whole: str) -> None:
    """Every rank gets its shard of every tensor, and together they are the whole ones."""
    expected = torch.load(whole)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    state = {
        name: distribute_tensor(torch.zeros_like(value), mesh, [Shard(0)]) if value.ndim else torch.zeros_like(value)
        for name, value in expected.items()
    }
    dcp.load({"model": state}, checkpoint_id=folder)
    for name, value in expected.items():
        found = state[name].full_tensor() if value.ndim else state[name]
        assert torch.equal(found, value), name


if __name__ == "__main__":
    arguments = int(sys.argv[1]), sys.argv[2], sys.argv[3:], {"loads": loads}
    torch.multiprocessing.start_processes(main, arguments, nprocs=arguments[0], start_method="fork")
    print("ranks agree")
