"""What several ranks check together; started by test_ranks.py, one process a rank, over gloo."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from tests.processes import rank_replicas, rank_shards


def main(rank: int, ranks: int, folder: str, checks: list[str], where: dict | None = None) -> None:
    """Args: `checks` are names of functions in `where`, with their arguments behind colons."""
    torch.set_num_threads(1)
    store = Path(folder, f"store_{os.getppid()}")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    for check in checks:
        name, *arguments = check.split(":")
        function = (where or {**vars(rank_shards), **vars(rank_replicas)})[name]
        function(*(int(x) if x.isdigit() else x for x in arguments))
    if rank_shards.RUNS_ON_CPU:  # torch 2.5 waits there for ever, after DDP without a backward pass
        dist.destroy_process_group()


if __name__ == "__main__":
    arguments = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    torch.multiprocessing.start_processes(main, arguments, nprocs=arguments[0], start_method="fork")
    print("ranks agree")
