"""Ranks of a model that have none, one or many of its tensors; over gloo, started by test_parts.py."""

import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from tests.processes.part_checks import make
from tests.processes.rank_checks import main
from tests.processes.rank_shards import fully_shard, on_all_ranks
from weight_averaging.averages import EMA as EMADescription
from weight_averaging.averages import LAWA as LAWADescription
from weight_averaging.torch import EMA, LAWA, Averages

SHAPES = [(3, 2), (1,), (4,), (0, 3), (2, 2, 2), ()]


class Some(nn.Module):
    """Tensors of a model, under the names of the whole one; the frozen ones, and an index that is no float, beside."""

    def __init__(self, numbers: list[int], frozen: list[int]) -> None:
        super().__init__()
        self.layers = nn.ParameterDict(
            {str(n): nn.Parameter(torch.zeros(SHAPES[n]), requires_grad=n not in frozen) for n in numbers}
        )
        self.register_buffer("index", torch.arange(3), persistent=False)


def fill(models: list[nn.Module], step: int, seed: int) -> None:
    """The same whatever rank has the tensor."""
    for model in models:
        for name, parameter in model.layers.items():
            values = np.random.default_rng([seed, step, int(name)]).standard_normal(SHAPES[int(name)])
            parameter.data.copy_(torch.as_tensor(values))


def expect_same(averagers: list, others: list, model: nn.Module, whole: nn.Module) -> None:
    """Averages in the model and as state dicts are those of the whole model; the raw weights come back."""
    for averager, other in zip(averagers, others, strict=True):
        raw = {name: p.detach().clone() for name, p in model.named_parameters()}
        with averager.averaged() as ready, other.averaged() as expected:
            assert ready == expected
            for name, parameter in model.named_parameters():
                assert torch.equal(parameter, whole.get_parameter(name)), name
        assert all(torch.equal(p, raw[name]) for name, p in model.named_parameters())
        if not ready:
            continue
        expected = other.average_state_dict()
        found = averager.average_state_dict(full=True)
        assert found.keys() == (expected.keys() if dist.get_rank() == 0 else set())
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
        assert averager.average_state_dict().keys() == model.state_dict().keys()


def random_parts(folder: str, seed: int, cases: int) -> None:
    """Every spread of tensors over the ranks averages as the whole model does, and so does every other one after it."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    numbers = list(range(len(SHAPES)))
    empty = 0
    for case in range(seed * cases, (seed + 1) * cases):
        draw = random.Random(case)
        frozen = draw.sample(numbers, draw.choice([0, 0, 2, 4]))
        spreads = []
        for _ in range(2):
            owners = [draw.randrange(-1, ranks) if draw.random() < 0.7 else 0 for _ in numbers]
            spreads.append([[n for n in numbers if owners[n] % ranks == r] for r in range(ranks)])
        options = {"check_finite": draw.random() < 0.8, "dtype": draw.choice([None, torch.float64])}
        whole = Some(numbers, frozen)
        if draw.random() < 0.3:  # a pattern that chooses something on one rank alone
            options["exclude" if draw.random() < 0.5 else "include"] = f"layers.{draw.choice(frozen or [2])}"
        model, other = (Some(spread[rank], frozen) for spread in spreads)
        kinds = [
            lambda m, **o: LAWA(m, interval=1, window=3, **o),
            lambda m, **o: EMA(m, decay=0.7, interval=2, **o),
            lambda m, **o: EMA(m, share=0.4, **o),
            lambda m, **o: Averages(
                m, [LAWADescription(window=2, interval=2), EMADescription(decay=0.5, interval=1)], **o
            ),
        ]
        kinds = draw.sample(kinds, 2)
        groups = {"model_parallel_group": dist.group.WORLD}
        averagers = [kind(model, **options, **groups) for kind in kinds]
        others = [kind(whole, **options) for kind in kinds]
        empty += not averagers[0]._weights.names
        last = draw.randint(1, 6)
        for step in range(1, last + 1):
            fill([model, whole], step, case)
            bad = draw.choice([n for n in numbers if np.prod(SHAPES[n]) and n not in frozen])
            if draw.random() < 0.2 and options["check_finite"] and whole.layers[str(bad)].requires_grad:
                for one in (model, whole):
                    if str(bad) in one.layers:
                        one.layers[str(bad)].data.view(-1)[0] = float("nan")
            taken = [averager.update(step) for averager in averagers]
            assert taken == [averager.update(step) for averager in others]
            assert on_all_ranks(taken) == [taken] * ranks
        fill([model, whole], last, case)
        expect_same(averagers, others, model, whole)

        path = f"{folder}/case_{case}"
        dcp.save({"averagers": [averager.state_dict() for averager in averagers]}, checkpoint_id=path)
        again = [kind(other, **options, **groups) for kind in kinds]
        state = {"averagers": [averager.state_dict() for averager in again]}
        dcp.load(state, checkpoint_id=path)
        for averager, saved in zip(again, state["averagers"], strict=True):
            averager.load_state_dict(saved)
        fill([other], last, case)
        expect_same(again, others, other, whole)
        for step in range(last + 1, last + 3):
            fill([other, whole], step, case)
            assert [a.update(step) for a in again] == [a.update(step) for a in others]
        expect_same(again, others, other, whole)
        for one in averagers[:1]:
            place = Path(folder, f"file_{case}")
            if one.ready:
                one.save_average(place)
    assert sum(on_all_ranks(empty)) > 0, "no rank had nothing to average"


def unfrozen_later() -> None:
    """A part whose layers are unfrozen later, and one whose layers go: from nothing, and to nothing."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    model, whole = Some([rank], [1]), Some(list(range(ranks)), [1])
    averagers, others = make(model, dist.group.WORLD), make(whole, None)
    assert on_all_ranks(len(averagers[0]._weights.names)) == [int(r != 1) for r in range(ranks)]

    def updates(steps: range) -> None:
        for step in steps:
            fill([model, whole], step, 0)
            assert [a.update(step) for a in averagers] == [a.update(step) for a in others]

    updates(range(1, 4))
    for one in (model, whole):
        if "1" in one.layers:
            one.layers["1"].requires_grad_(True)
    updates(range(4, 6))
    expect_same(averagers, others, model, whole)
    for one in (model, whole):
        if "0" in one.layers:
            del one.layers["0"]
    updates(range(6, 8))
    assert on_all_ranks(len(averagers[0]._weights.names)) == [int(r != 0) for r in range(ranks)]
    expect_same(averagers, others, model, whole)


def refused_on_all() -> None:
    """What one rank cannot average is told on every rank at once, and so is a model without anything to average."""
    rank, last = dist.get_rank(), dist.get_world_size() - 1

    def refused(error: type, others: str, function) -> None:
        with pytest.raises(error if rank == last else RuntimeError, match=None if rank == last else others):
            function()

    group = dist.group.WORLD
    model = Some([rank] if rank == last else [], [rank])
    with pytest.raises(ValueError, match=r"no rank of model_parallel_group has a trainable floating-point parameter"):
        make(model, group)
    with pytest.raises(ValueError, match=r"exclude: no tensor is called, or matches, 'head'"):
        EMA(Some([rank], []), decay=0.5, model_parallel_group=group, exclude="head")
    odd = Some([rank], [])
    if rank == last:
        odd.layers[str(rank)] = nn.Parameter(torch.zeros(2, device="meta"))
    refused(
        ValueError, f"rank {last} of model_parallel_group raised ValueError: .*meta device", lambda: make(odd, group)
    )
    refused(
        TypeError,
        f"rank {last} of model_parallel_group raised TypeError: an averager takes a torch.nn.Module",
        lambda: make(3 if rank == last else model, group),
    )
    bits = Some([rank], []).bfloat16() if rank else Some([], [])
    masters = {p: p.detach().float() for p in bits.parameters()}
    ema = EMA(bits, decay=0.5, model_parallel_group=group, masters=masters)
    assert ema.update(1)  # the first rank needs no master
    lacking = EMA(bits, decay=0.5, model_parallel_group=group, masters={} if rank == last else masters)
    refused(ValueError, rf"rank {last} .* raised ValueError: masters: there is no float32", lambda: lacking.update(1))

    model = Some([rank], [])
    ema = EMA(model, decay=0.5, model_parallel_group=group)
    ema.update(1)
    state = ema.state_dict()
    wrong = {**state, "tracks": [{**t, "vectors": [{}]} for t in state["tracks"]]} if rank == last else state
    refused(
        ValueError,
        f"rank {last} .* raised ValueError: the state was saved by another rank",
        lambda: ema.load_state_dict(wrong),
    )
    elsewhere = {**state, "names": [f"other.{name}" for name in state["names"]]}
    for how in ("same", "new"):
        with pytest.raises(ValueError, match="no rank has a tensor of it"):
            ema.load_state_dict(elsewhere, settings=how)
    ema.load_state_dict(state)


def empty_shards_of_stages(folder: str) -> None:
    """A stage of shards of which most ranks have no element, beside a stage that is all frozen."""
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("pipeline", "data"))
    stage = mesh["pipeline"].get_local_rank()
    whole, model = Some([0, 1], [1]), Some([stage], [1])
    model.register_buffer("statistic", torch.full((2,), 3.0))
    whole.register_buffer("statistic", torch.full((2,), 3.0))
    model.layers[str(stage)] = nn.Parameter(torch.zeros(1, 4), requires_grad=stage == 0)
    whole.layers["0"] = nn.Parameter(torch.zeros(1, 4))
    whole.layers["1"] = nn.Parameter(torch.zeros(1, 4), requires_grad=False)
    fully_shard(model, mesh=mesh["data"])
    averagers, others = make(model, mesh["pipeline"].get_group()), make(whole, None)

    def filled(step: int) -> None:
        value = torch.randn(1, 4, generator=torch.Generator().manual_seed(step))
        whole.layers["0"].data.copy_(value)
        if stage == 0 and (local := model.layers["0"].to_local()).numel():
            local.detach().copy_(value)

    for step in range(1, 6):
        filled(step)
        if step == 4 and stage == 0 and (local := model.layers["0"].to_local()).numel():
            local.detach()[0, 0] = float("nan")
        taken = [averager.update(step) for averager in averagers]
        assert on_all_ranks(taken) == [[step != 4, step == 2, step != 4]] * dist.get_world_size()
        for other in others:
            if step != 4:
                other.update(step)
    for number, (averager, other) in enumerate(zip(averagers, others, strict=True)):
        expected, found = other.average_state_dict(), averager.average_state_dict(full=True)
        assert found.keys() == (expected.keys() if dist.get_rank() == 0 else set())
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
        averager.save_average(Path(folder, f"empty_{number}"))


if __name__ == "__main__":
    arguments = int(sys.argv[1]), sys.argv[2], sys.argv[3:], globals()
    torch.multiprocessing.start_processes(main, arguments, nprocs=arguments[0], start_method="fork")
    print("ranks agree", os.getpid())
