"""Two ranks, of which either is killed: the other ends too, and both together lose nothing. KILLS=50 for as many."""

import collections
import datetime
import importlib
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from miniperf import checkpoints
from miniperf.frameworks.pytorch import FRAMEWORK as PYTORCH
from submissions.recipe.pytorch.nadamw import NadamW
from tests.miniperf.test_runner import leaves
from tests.support.killing import Lines, die_writing, in_a_process, newest
from weight_averaging.torch import EMA, LAWA, Averager

STEPS, EVERY = 24, 4


def averager_of(name: str, model: nn.Module) -> Averager:
    group = dist.group.WORLD
    if name == "lawa":
        return LAWA(model, interval=3, window=4, process_group=group)
    return EMA(model, interval=3, decay=0.7, process_group=group)


def evaluate(model: nn.Module, rank: int) -> float:
    """The loss over the ranks' parts of the held-out examples."""
    model.eval()
    examples, targets = batch_of(-1, rank)
    with torch.no_grad():
        loss = cross_entropy(model(examples), targets)
    dist.all_reduce(loss)
    return loss.item()


def batch_of(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * (step + 1) + rank)
    examples = torch.randn(16, 20, generator=generator)
    return examples, (examples[:, :5] ** 2).argmax(1)


def train(rank: int, name: str, folder: Path, store: Path, begun: Any) -> None:
    """As the official harness does it: all ranks read the last checkpoint, rank 0 writes, the average in the model."""
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=limit)
    begun.wait()
    torch.manual_seed(0)
    bare = nn.Sequential(nn.Linear(20, 64), nn.LayerNorm(64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 5))
    model = DistributedDataParallel(bare)
    state: dict[str, Any] = {"optimizer": NadamW(model.parameters(), lr=1e-2, betas=(0.9, 0.99))}
    state["averager"] = averager_of(name, model)
    rows: list[tuple[int, float]] = []
    if rank == 0:
        checkpoints.remove_partial(folder)
    saved = checkpoints.load_latest(PYTORCH, folder, {})
    if saved is not None:
        bare.load_state_dict(saved[1]["model_params"])
        for key, value in state.items():
            value.load_state_dict(saved[1]["optimizer_state"][key])
        rows = list(saved[1]["eval_results"])
    for step in range(rows[-1][0] + 1 if rows else 1, STEPS + 1):
        state["averager"].swap_out()
        model.train()
        torch.manual_seed(2 * step + rank)  # of dropout
        examples, targets = batch_of(step, rank)
        state["optimizer"].zero_grad()
        cross_entropy(model(examples), targets).backward()
        state["optimizer"].step()
        state["averager"].update(step)
        if step % EVERY == 0:
            state["averager"].swap_in()
            rows.append((step, evaluate(model, rank)))
            if rank == 0:
                contents = {
                    **dict.fromkeys(checkpoints.CONTENTS),
                    "model_params": bare.state_dict(),
                    "optimizer_state": {key: value.state_dict() for key, value in state.items()},
                    "eval_results": rows,
                    "global_step": step,
                }
                checkpoints.save(PYTORCH, folder, step, contents, keep_all=False)
    state["averager"].swap_in()
    end = {"average": {key: value.clone() for key, value in bare.state_dict().items()}, "rows": rows}
    state["averager"].swap_out()
    end |= {"raw": bare.state_dict(), **{key: value.state_dict() for key, value in state.items()}}
    with open(folder / f"end_{rank}", "wb") as file:
        torch.save(end, file)


# Where a rank dies, at any line inside: the function, and which of its calls count.
PLACES: dict[str, tuple[Any, str, Any]] = {
    "checkpoint": (checkpoints, "save", lambda *_, **__: True),
    "evaluation": (sys.modules[__name__], "evaluate", lambda *_: True),
    "snapshot": (Averager, "update", lambda averager, step, *_: step % averager.interval == 0),
    "swap": (Averager, "swap_in", lambda *_: True),
}
OF_THE_WRITER = ("checkpoint", "half a checkpoint file")
KINDS = [(0, kind) for kind in [*PLACES, "half a checkpoint file", "random moment"]]
KINDS += [(1, kind) for _, kind in KINDS if kind not in OF_THE_WRITER]


def train_and_count(rank: int, name: str, folder: Path, *rest: Any) -> None:
    places = {kind: Lines(*place) for kind, place in PLACES.items()}
    train(rank, name, folder, *rest)
    (folder / f"lines_{rank}.json").write_text(json.dumps({kind: place.seen for kind, place in places.items()}))


def train_and_die(kind: str, share: float, lines: dict[str, int], *run: Any) -> None:
    """Dies after that share of the lines, or in one of the next checkpoints."""
    if kind in PLACES:
        Lines(*PLACES[kind], max(1, int(share * lines[kind])))
    elif kind == "half a checkpoint file":
        die_writing(1 + int(4 * share), share, print)
    train(*run)


def start(functions: list[tuple[Any, ...]], name: str, folder: Path) -> list[Any]:
    """Both ranks, connected. Each function with its arguments is given those of `train` too."""
    folder.mkdir(exist_ok=True)
    store = folder / "store"
    store.unlink(missing_ok=True)
    begun = multiprocessing.get_context("fork").Barrier(3)
    processes = [in_a_process(*function, rank, name, folder, store, begun) for rank, function in enumerate(functions)]
    begun.wait(60)
    return processes


def ends(processes: list[Any]) -> list[int]:
    """The exit codes; one that has not ended long after the other is a failure."""
    for process in processes:
        process.join(60)
    hanging = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for rank in hanging:
        processes[rank].kill()
    assert not hanging, "a rank waits for ever for the one that was killed"
    return [process.exitcode for process in processes]


@pytest.mark.parametrize("name", ["lawa", "ema"])
def test_two_ranks_of_which_either_is_killed_end_like_unbroken_ones(tmp_path, name, capfd):
    importlib.import_module("torch._dynamo")  # DDP does: here once, not in every process
    begin = time.perf_counter()
    assert ends(start([(train_and_count,)] * 2, name, tmp_path / "unbroken")) == [0, 0]
    seconds = time.perf_counter() - begin
    lines = [json.loads((tmp_path / "unbroken" / f"lines_{rank}.json").read_text()) for rank in range(2)]
    unbroken = [leaves(torch.load(tmp_path / "unbroken" / f"end_{rank}", weights_only=True)) for rank in range(2)]
    shared = {key: value for key, value in unbroken[0].items() if key in unbroken[1]}
    assert_equal(shared, unbroken[1])
    alone = unbroken[0].keys() - shared.keys()
    assert len(alone) == (4 if name == "lawa" else 0), alone  # rank 0 holds the window
    assert all("/vectors/" in key for key in alone)
    numbers = random.Random(name)
    waiting = [KINDS[i % len(KINDS)] for i in range(int(os.environ.get("KILLS", str(len(KINDS)))))]
    numbers.shuffle(waiting)
    killed: collections.Counter[str] = collections.Counter()
    runs = 0
    while waiting:
        runs += 1
        folder, kills, reached = tmp_path / f"killed_{runs}", 0, 0
        while True:
            victim, kind = waiting[-1] if waiting and kills < 5 else (0, "")
            share = numbers.uniform(0, 0.5)  # a run that goes on from a checkpoint has fewer lines left
            functions = [(train_and_die, kind if rank == victim else "", share, lines[rank]) for rank in range(2)]
            processes = start(functions, name, folder)
            if kind == "random moment":
                time.sleep(share * seconds)
                processes[victim].kill()
            codes = ends(processes)
            if codes[victim] != -signal.SIGKILL:
                assert codes == [0, 0]
                break
            killed[f"rank {victim}, {kind}"] += 1
            kills += 1
            assert newest(folder) >= reached
            reached = newest(folder)
            waiting.pop()
        for rank in range(2):
            assert_equal(leaves(torch.load(folder / f"end_{rank}", weights_only=True)), unbroken[rank])
        assert not [path for path in folder.iterdir() if path.name.startswith((".partial", "unusable"))]
    with capfd.disabled():
        print(f"\n{name}: {killed.total()} kills of one of two ranks in {runs} runs, losses 0: {dict(killed)}")
    assert len(killed) == len(KINDS) or "KILLS" in os.environ


def assert_equal(one: dict[str, object], other: dict[str, object]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key
