"""Training that saves as it goes; a rank is killed, and fewer go on from there. Started by test_elastic.py.

Also under torchrun: `torchrun ... -m tests.processes.elastic_ranks KIND FOLDER NODE`. There the worker of the agent
that has NODE in its environment kills that agent and itself, once. For NODE "none" the last worker alone dies.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.nn.parallel import DistributedDataParallel

from tests.processes.mesh_checks import averages, full, plain, spread_over, train
from tests.processes.rank_checks import main
from tests.processes.rank_shards import check_equal, on_all_ranks
from tests.support.killing import die, newest
from weight_averaging.torch import EMA, LAWA

UPDATES, EVERY, LAST = 12, 2, 8


def run(kind: str, folder: str, killed: int, mark: Path | None = None, agent: int = 0) -> int:
    """From the newest checkpoint there is. Rank `killed` dies as update 8 is saved; without one all come to the end.

    Args:
        mark: a file to leave then.
        agent: a process to kill then, as if the machine were gone.
    Returns:
        The update that it went on from.
    """
    options = {"process_group": dist.group.WORLD} if kind == "ddp" else {}
    model = DistributedDataParallel(plain()) if kind == "ddp" else spread_over(kind)
    averagers = [LAWA(model, interval=1, window=4, **options), EMA(model, decay=0.7, interval=2, **options)]
    begun = newest(Path(folder))
    where = Path(folder, f"checkpoint_{begun}")
    if begun and kind == "ddp":
        state = torch.load(where, weights_only=True)
        model.load_state_dict(state["model"])
    elif begun:
        state = {"model": model.state_dict(), "averagers": [averager.state_dict() for averager in averagers]}
        dcp.load(state, checkpoint_id=where)
    if begun:
        for averager, saved in zip(averagers, state["averagers"], strict=True):
            averager.load_state_dict(saved)
    for step in range(begun + 1, UPDATES + 1):
        train(model, averagers, range(step, step + 1))
        if step % EVERY == 0:
            if step == LAST and dist.get_rank() == killed:
                if mark is not None:
                    mark.touch()
                if agent:
                    os.kill(agent, signal.SIGKILL)
                die()
            save(model, averagers, kind, Path(folder, f"checkpoint_{step}"))
    whole = plain()
    others = [LAWA(whole, interval=1, window=4), EMA(whole, decay=0.7, interval=2)]
    train(whole, others, range(1, UPDATES + 1))
    check_equal(averages(model, averagers), averages(whole, others))
    np.testing.assert_array_equal(full(model), full(whole))
    assert on_all_ranks(begun) == [LAST - EVERY] * dist.get_world_size()
    return begun


def save(model: torch.nn.Module, averagers: list, kind: str, place: Path) -> None:
    """In place only when all of it is written."""
    partial = place.with_name(f"writing_{place.name}")
    state = {"model": model.state_dict(), "averagers": [averager.state_dict() for averager in averagers]}
    if kind != "ddp":
        dcp.save(state, checkpoint_id=partial)
    elif dist.get_rank() == 0:  # it holds the window, for all
        torch.save(state, partial)
    dist.barrier()
    if dist.get_rank() == 0:
        os.replace(partial, place)


def under_torchrun(kind: str, folder: str, node: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, ranks, mark = dist.get_rank(), dist.get_world_size(), Path(folder, "killed")
    if rank == 0:
        for path in Path(folder).glob("writing_*"):  # of a save that was broken off
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    dist.barrier()
    mine = rank == ranks - 1 if node == "none" else os.environ["NODE"] == node
    agent = 0 if node == "none" else int(os.environ["AGENT"])
    begun = run(kind, folder, rank if mine and not mark.exists() else -1, mark, agent)
    print(f"{ranks} ranks went on from update {begun} with {kind}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    if dist.is_torchelastic_launched():
        under_torchrun(*sys.argv[1:])
    else:
        arguments = int(sys.argv[1]), sys.argv[2], sys.argv[3:], globals()
        torch.multiprocessing.start_processes(main, arguments, nprocs=arguments[0], start_method="fork")
        print("ranks agree")
