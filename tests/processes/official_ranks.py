"""The official harness on two ranks of a CPU machine: it hard-codes NCCL and CUDA, which are replaced here.

torchrun --standalone --nproc_per_node=2 tests/processes/official_ranks.py                     checks a resume under DDP
torchrun --standalone --nproc_per_node=2 tests/processes/official_ranks.py submission_runner --workload=mnist ...
"""

import faulthandler
import os
import runpy
import sys
import tempfile
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from launching.rehearsal.on_cpu import replace_cuda_between_ranks

SECONDS = 900  # then every rank says where it is, and ends


def on_all_ranks(value: Any) -> list[Any]:
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def check() -> None:
    from tests.processes.official_driver import Run

    rank = dist.get_rank()

    def train(run: Any, until: int) -> list[list[str]]:
        """Weights after every update, and after preparing for the evaluations at 2 and 4; of all ranks."""
        seen = []
        while run.step < until:
            run.update()
            seen.append(on_all_ranks(run.fingerprint()))
            if run.step in (2, 4, 6):
                run.prepare()
                seen.append(on_all_ranks(run.fingerprint()))
        return seen

    unbroken, killed = Run("lawa", "mnist", rank), Run("lawa", "mnist", rank)
    expected = train(unbroken, 6)
    assert all(a == b for a, b in expected), "the ranks differ"
    assert train(killed, 4) == expected[:6]
    folder = on_all_ranks(tempfile.mkdtemp())[0]
    if rank == 0:
        killed.save(folder)
    dist.barrier()

    resumed = Run("lawa", "mnist", rank)
    resumed.restore(folder)
    assert not isinstance(resumed.model, DistributedDataParallel), "upstream keeps the wrapper now: drop in_ddp"
    assert train(resumed, 6) == expected[6:], "the resumed run differs from the unbroken one"
    assert isinstance(resumed.model, DistributedDataParallel)

    # That this would be noticed: without the second wrapping the ranks drift apart.
    drifting = Run("lawa", "mnist", rank)
    drifting.restore(folder)
    with mock.patch("submissions.recipe.pytorch.recipe.in_ddp", lambda model, device: model):
        first, second = train(drifting, 5)[0]
    assert first != second
    if rank == 0:
        print("ranks agree")


if __name__ == "__main__":
    replace_cuda_between_ranks()
    if len(sys.argv) == 1:
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        torch.set_num_threads(1)
        dist.init_process_group()
        check()
        dist.barrier()  # neither leaves while the other still reads from it
        dist.destroy_process_group()
    else:
        sys.argv = sys.argv[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
