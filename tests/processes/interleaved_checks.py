"""Ranks with several stages of a pipeline each; over gloo, started by test_parts.py."""

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
from torch.distributed.pipelining import PipelineStage, ScheduleInterleaved1F1B
from torch.nn.parallel import DistributedDataParallel

from tests.processes.mesh_checks import UPDATES, full
from tests.processes.part_checks import LAYERS, WIDTH, Stage, averages, make, of_all
from tests.processes.rank_checks import main
from tests.support import reference
from weight_averaging.torch import LAWA

STAGES = 6


def stages_here(each: int) -> list[Stage]:
    """Every `ranks`-th stage, as interleaved schedules have them."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    assert ranks * each == STAGES, "stages are not the same number on all ranks"
    return [Stage(number, STAGES) for number in range(rank, STAGES, ranks)]


def train(parts: list[Stage], averagers: list, steps: range) -> list[np.ndarray]:
    """Real pipelined updates; the weights of each, of this rank."""
    rank, ranks, optimizer = dist.get_rank(), dist.get_world_size(), torch.optim.SGD
    numbers = range(rank, STAGES, ranks)
    stages = [PipelineStage(part, n, STAGES, torch.device("cpu")) for part, n in zip(parts, numbers, strict=True)]
    pipe = ScheduleInterleaved1F1B(stages, n_microbatches=6, loss_fn=nn.functional.mse_loss)
    optimizers = [optimizer(part.parameters(), 0.5) for part in parts]
    seen = []
    for step in steps:
        x, y = torch.randn(2, 12, WIDTH, generator=torch.Generator().manual_seed(step))
        y = y.repeat(1, 2)[:, : WIDTH + 2]
        pipe.step(*([x] if rank == 0 else []), **({"target": y} if rank == ranks - 1 else {}))
        for one in optimizers:
            one.step()
            one.zero_grad()
        seen.append(np.concatenate([full(part) for part in parts]))
        for averager in averagers:
            averager.update(step)
    return seen


def sorted_by_name(averagers: list) -> list[np.ndarray]:
    """The averages of all ranks together, whoever has which tensors."""
    found = []
    for averager in averagers:
        state = averager.average_state_dict(full=True)
        found.append(np.concatenate([state[name].numpy().ravel() for name in sorted(state)]) if state else np.empty(0))
    return found


def interleaved(folder: str, each: int) -> None:
    """Each rank averages its stages, under the names of the whole model."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    parts = stages_here(each)
    averagers = make(parts, dist.group.WORLD)
    seen = train(parts, averagers, range(1, UPDATES + 1))
    both = averagers[0]._model
    found = averages(both, averagers)
    np.testing.assert_allclose(found[0], reference.lawa(seen, 3), atol=1e-6)
    np.testing.assert_allclose(found[1], reference.ema(seen[1::2], 0.7), atol=1e-6)
    np.testing.assert_array_equal(np.concatenate([full(part) for part in parts]), seen[-1])

    names = {f"layers.{n}.{kind}" for n in range(LAYERS) for kind in ("weight", "bias")} | {"last.scale"}
    for number, averager in enumerate(averagers[:2]):
        place = Path(folder, f"whole_{each}_{number}")
        averager.save_average(place)
        dist.barrier()
        written = load_file(place / "model.safetensors")
        assert written.keys() == names
        for name, tensor in averager.average_state_dict().items():
            assert torch.equal(written[name], tensor), name
    if rank == 0:
        np.savez(Path(folder, f"expected_{each}.npz"), *sorted_by_name(averagers))
    else:
        sorted_by_name(averagers)
    model = {name: tensor for part in parts for name, tensor in part.state_dict().items()}
    state = {"model": model, "averagers": [averager.state_dict() for averager in averagers]}
    dcp.save(state, checkpoint_id=f"{folder}/interleaved_{each}")
    on = train(parts, averagers, range(UPDATES + 1, UPDATES + 4))
    after = sorted_by_name(averagers)
    if rank == 0:
        np.savez(Path(folder, f"after_{each}.npz"), *after)
    assert len(of_all([on[-1]])[0]) == sum(p.numel() for n in range(STAGES) for p in Stage(n, STAGES).parameters())
    assert ranks * each == STAGES


def go_on_interleaved(folder: str, each: int, before: int) -> None:
    """From a state of another number of ranks, with `before` stages each: the same averages, now and later."""
    parts = stages_here(each)
    for part in parts:
        for parameter in part.parameters():
            parameter.data.zero_()
    averagers = make(parts, dist.group.WORLD)
    model = {name: tensor for part in parts for name, tensor in part.state_dict().items()}
    state = {"model": model, "averagers": [averager.state_dict() for averager in averagers]}
    dcp.load(state, checkpoint_id=f"{folder}/interleaved_{before}")
    for averager, saved in zip(averagers, state["averagers"], strict=True):
        averager.load_state_dict(saved)
    for moment, steps in (("expected", range(0)), ("after", range(UPDATES + 1, UPDATES + 4))):
        train(parts, averagers, steps)
        found = sorted_by_name(averagers)
        if dist.get_rank() == 0:
            expected = np.load(Path(folder, f"{moment}_{before}.npz")).values()
            for mine, theirs in zip(found, expected, strict=True):
                np.testing.assert_array_equal(mine, theirs)


def names_of_stages() -> None:
    """What several stages have under one name is refused if it is averaged, and else goes on as it is."""
    twice = [Stage(0, 2), Stage(0, 2)]
    with pytest.raises(ValueError, match=r"two tensors to average are called layers\.0\.weight"):
        LAWA(twice, interval=1, window=1, model_parallel_group=dist.group.WORLD)
    with pytest.raises(TypeError, match="several as stages of one model, not int among them"):
        LAWA([Stage(0, 2), 3], interval=1, window=1)
    parts = [DistributedDataParallel(Stage(0, 2), init_sync=False), torch.compile(Stage(1, 2))]
    lawa = LAWA(parts, interval=1, window=1)
    lawa.update(1)
    assert lawa.average_state_dict().keys() == Stage(0, 1).state_dict().keys()
    others = [Stage(0, 2), Stage(1, 2)]
    for other in others:
        for tensor in [*other.parameters(), *other.buffers()]:
            tensor.data.zero_()
    assert lawa.copy_to(others)
    for part, other in zip((parts[0].module, parts[1]._orig_mod), others, strict=True):
        for mine, theirs in zip([*part.parameters(), *part.buffers()], [*other.parameters(), *other.buffers()]):
            assert torch.equal(mine, theirs)
    shared = [Stage(0, 2), Stage(1, 2)]
    shared[1].layers["5"].bias = shared[0].layers["0"].bias  # tied over the stages of a rank
    tied = LAWA(shared, interval=1, window=1)
    assert tied.update(1)
    state = tied.average_state_dict()
    assert torch.equal(state["layers.5.bias"], state["layers.0.bias"])


if __name__ == "__main__":
    arguments = int(sys.argv[1]), sys.argv[2], sys.argv[3:], globals()
    torch.multiprocessing.start_processes(main, arguments, nprocs=arguments[0], start_method="fork")
    print("ranks agree", os.getpid())
