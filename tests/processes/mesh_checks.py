"""Averages over device meshes of every kind, one process a rank, over gloo; started by test_ranks.py."""

import contextlib
import datetime
import gc
import json
import os
import pickle
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from tests.processes.rank_checks import main
from tests.processes.rank_shards import check_equal, full, fully_shard, on_all_ranks
from tests.support import reference
from weight_averaging.averages import EMA as EMADescription
from weight_averaging.averages import LAWA as LAWADescription
from weight_averaging.torch import EMA, LAWA, Averages
from weight_averaging.torch.model.tensors import spread
from weight_averaging.trainers.shards import InOneFile

UPDATES = 6


class Net(nn.Module):
    """With tensors that no number of ranks divides evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.up = nn.Linear(6, 10)
        self.norm = nn.LayerNorm(10)
        self.down = nn.Linear(10, 5)


def plain(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return Net().to(dtype)


def spread_over(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The same model over all ranks, which are in two groups of as many where the mesh has two dimensions."""
    model, ranks = plain(dtype), dist.get_world_size()
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    line = init_device_mesh("cpu", (ranks,))
    if kind == "fsdp2":
        fully_shard(model, mesh=line)
    elif kind == "tensor":
        parallelize_module(model, line, plan)
    elif kind == "two_meshes":
        pairs = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("outer", "inner"))
        parallelize_module(model.up, pairs["inner"], ColwiseParallel())
        fully_shard(model.embed, mesh=line)
    else:
        mesh = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("data", "model"))
        if kind == "hsdp":
            fully_shard(model, mesh=mesh)
        else:
            parallelize_module(model, mesh["model"], plan)
        if kind == "fsdp2_tensor":
            fully_shard(model.up, mesh=mesh["data"])
            fully_shard(model, mesh=mesh["data"])
    return model


def train(model: nn.Module, averagers: list, steps: range) -> list[np.ndarray]:
    """Weights of each update; the same whatever the ranks."""
    seen = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            value = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
            with torch.no_grad():
                parameter.copy_(spread(value, parameter))
        seen.append(full(model))
        assert all(averager.update(step) or averager.interval > 1 for averager in averagers)
    return seen


def make(model: nn.Module) -> list:
    return [
        LAWA(model, interval=1, window=4),
        EMA(model, decay=0.7, interval=2),
        EMA.growing(model, share=0.5),
        Averages(model, [EMADescription(decay=0.5, interval=1), LAWADescription(window=2, interval=1)]),
    ]


def averages(model: nn.Module, averagers: list) -> list[np.ndarray]:
    result = []
    for averager in averagers:
        with averager.averaged() as ready:
            assert ready
            result.append(full(model))
    return result


def average_and_save(kind: str, folder: str) -> None:
    """Averages are those of the whole model, bit for bit, and near to float64's; the raw weights come back."""
    for dtype in (torch.float32, torch.float64):
        model, whole = spread_over(kind, dtype), plain(dtype)
        averagers, others = make(model), make(whole)
        seen = train(model, averagers, range(1, UPDATES + 1))
        check_equal(seen, train(whole, others, range(1, UPDATES + 1)))
        found = averages(model, averagers)
        check_equal(found, averages(whole, others))
        np.testing.assert_array_equal(full(model), seen[-1])
        far = 1e-6 if dtype == torch.float32 else 1e-15
        np.testing.assert_allclose(found[0], reference.lawa(seen, 4), atol=far)
        np.testing.assert_allclose(found[1], reference.ema(seen[1::2], 0.7), atol=far)

        path = f"{folder}/{kind}_{dtype.itemsize}"
        dcp.save({"averagers": [averager.state_dict() for averager in averagers]}, checkpoint_id=path)
        resumed(path, model, make(model), found)

        if kind != "tensor_of_replicas":  # whose replicas are the same, and do not ask each other
            last = dist.get_rank() == dist.get_world_size() - 1
            here = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]
            with torch.no_grad():  # a NaN on one rank: none takes the snapshot in
                next(t for t in here if t.numel()).view(-1)[0] = float("nan") if last else 0.0
            assert on_all_ranks(averagers[0].update(UPDATES + 1)) == [False] * dist.get_world_size()


def resumed(path: str, model: nn.Module, averagers: list, expected: list[np.ndarray]) -> None:
    state = {"averagers": [averager.state_dict() for averager in averagers]}
    dcp.load(state, checkpoint_id=path)
    for averager, saved in zip(averagers, state["averagers"], strict=True):
        averager.load_state_dict(saved)
    check_equal(averages(model, averagers), expected)


def go_on(kind: str, other: str, folder: str) -> None:
    """What ranks of one kind saved, trained on by another number of ranks of another kind; no bit is lost."""
    for dtype in (torch.float32, torch.float64):
        trained = UPDATES + 2 * kind.endswith("_then")
        model, whole = spread_over(other, dtype), plain(dtype)
        averagers, others = make(model), make(whole)
        train(whole, others, range(1, trained + 1))
        resumed(f"{folder}/{kind}_{dtype.itemsize}", model, averagers, averages(whole, others))
        on = range(trained + 1, trained + 3)
        train(whole, others, on)
        train(model, averagers, on)
        check_equal(averages(model, averagers), averages(whole, others))
        path = f"{folder}/{kind}_then_{dtype.itemsize}"
        dcp.save({"averagers": [averager.state_dict() for averager in averagers]}, checkpoint_id=path)


def through_the_first_rank(kind: str) -> None:
    """As trainers save that have one file: gathered on the first rank, read by all, spread again."""
    for dtype in (torch.float32, torch.float64):
        model = spread_over(kind, dtype)
        averagers = make(model)[:2]
        train(model, averagers, range(1, UPDATES + 1))
        expected = averages(model, averagers)
        for averager, again, value in zip(averagers, make(model)[:2], expected, strict=True):
            states = on_all_ranks(InOneFile(averager).state_dict())
            assert not any(vector for state in states[1:] for track in state["tracks"] for vector in track["vectors"])
            InOneFile(again).load_state_dict(states[0])
            with again.averaged():
                np.testing.assert_array_equal(full(model), value)


def as_the_first_rank_pickled_it(kind: str) -> None:
    """Its shards are refused on the others, where they may have the right sizes."""
    model = spread_over(kind)
    averager, again = make(model)[0], make(model)[0]
    train(model, [averager], range(1, UPDATES + 1))
    try:
        pickled = on_all_ranks(pickle.dumps(averager.state_dict()))[0]
    except RuntimeError:
        return  # torch 2.13 pickles no DTensor
    state, first = pickle.loads(pickled), dist.get_rank() == 0
    with contextlib.nullcontext() if first else pytest.raises(ValueError, match="are another rank's"):
        again.load_state_dict(state)
    assert again.step == UPDATES * first


def whole_on_the_first_rank(kind: str, folder: str) -> None:
    """The whole average in memory and in files, as of the plain model; one part at a time."""
    model, other = spread_over(kind), plain()
    model.norm.bias.requires_grad_(False)
    averagers, others = make(model)[:2], make(other)[:2]
    train(other, others, range(1, UPDATES + 1))
    train(model, averagers, range(1, UPDATES + 1))
    first = dist.get_rank() == 0
    for number, (averager, whole) in enumerate(zip(averagers, others, strict=True)):
        expected = whole.average_state_dict()
        expected["norm.bias"] = other.norm.bias.detach()
        found = averager.average_state_dict(full=True)
        assert found.keys() == (expected.keys() if first else set())
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())

        for size, count in ((10**9, 1), (300, 3)):
            place = Path(folder, f"{kind}_{number}_{count}")
            with Held(model, averager, most=size) as held:
                averager.save_average(place, max_shard_size=size)
            dist.barrier()
            files = sorted(place.glob("*.safetensors"))
            assert len(files) == count, files
            assert len(held.seen) == count * first
            assert max((sum(sizes) for sizes in held.seen), default=0) <= size, (kind, number, held.seen)
            written = {name: tensor for file in files for name, tensor in load_file(file).items()}
            assert written.keys() == expected.keys()
            assert all(torch.equal(tensor, expected[name]) for name, tensor in written.items())
            if count > 1:
                index = json.loads((place / "model.safetensors.index.json").read_text())
                assert {file.name for file in files} == set(index["weight_map"].values())
                assert index["metadata"]["total_size"] == sum(4 * tensor.numel() for tensor in written.values())
            before = [file.read_bytes() for file in files]
            kind_of_error = FileExistsError if first else RuntimeError
            with pytest.raises(kind_of_error, match=r"not an empty folder|could not write"):
                averager.save_average(place)
            dist.barrier()
            assert [file.read_bytes() for file in files] == before
            assert [path.name for path in place.parent.iterdir() if path.name.startswith(".partial")] == []


def a_rank_that_does_not_come() -> None:
    """The group's own timeout ends the others' wait, and they have lost nothing: weights and averages are as before."""
    seconds = 3
    group = dist.new_group(timeout=datetime.timedelta(seconds=seconds))
    model, first = plain(), dist.get_rank() == 0
    lawa = LAWA(model, interval=1, window=2, process_group=group)
    train(model, [lawa], range(1, 4))
    raw, held = full(model), [vector.clone() for vector in lawa._tracks[0].vectors()]
    store = dist.distributed_c10d._get_default_store()
    # The first rank waits in `update`, the other one for the average, each with nobody there. The one whose time is
    # over first closes the connection.
    ended = r"(?i)timed? ?out|closed by peer|reset by peer"
    began = time.monotonic()
    if first:
        with pytest.raises(RuntimeError, match=ended):
            lawa.update(4)
        assert lawa.snapshot_steps == [2, 3]
    else:
        with pytest.raises(RuntimeError, match=ended):
            lawa.swap_in()
        assert not lawa.swapped
    assert time.monotonic() - began < 20 * seconds
    np.testing.assert_array_equal(full(model), raw)
    check_equal([v.numpy() for v in lawa._tracks[0].vectors()], [v.numpy() for v in held])
    store.set(f"done {dist.get_rank()}", "")
    store.wait(["done 0", "done 1"])


def a_rank_that_dies_while_the_average_is_saved(folder: str) -> None:
    """The first rank raises at once, and nothing half written is left; what is held can be saved by itself."""
    model = spread_over("fsdp2")
    lawa = LAWA(model, interval=1, window=2)
    train(model, [lawa], range(1, 4))
    raw = [parameter.to_local().clone() for parameter in model.parameters()]
    if dist.get_rank() > 0:
        os._exit(0)
    with pytest.raises(RuntimeError, match=r"(?i)clos|reset|refused|timed"):
        lawa.save_average(Path(folder, "average"))
    assert not [path for path in Path(folder).iterdir() if "average" in path.name]
    assert all(torch.equal(mine.to_local(), kept) for mine, kept in zip(model.parameters(), raw, strict=True))
    assert lawa.snapshot_steps == [2, 3]
    print("ranks agree", flush=True)
    os._exit(0)


class Held:
    """Bytes of whole tensors in this process, beside model and averager, whenever a part is written.

    A reading above `most` is repeated for seconds, since gloo's threads let go of a buffer some time after its use.
    """

    SECONDS = 10

    def __init__(self, model: nn.Module, averager: LAWA | EMA, most: int) -> None:
        averager.average_state_dict()  # the memory that a block's average is made in is there from now on
        here = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]
        here += [*averager._tracks[0].slots(), *getattr(averager._tracks[0], "_sums", ())]
        self._own = {tensor.untyped_storage().data_ptr() for tensor in here}
        self._most = most

    def __enter__(self) -> "Held":
        self.seen, self._save = [], safetensors.torch.save_file
        safetensors.torch.save_file = self._saving
        self._before = {id(tensor): tensor for tensor in self._plain()}  # held, so that no new one gets its id
        return self

    def __exit__(self, *exception: object) -> None:
        safetensors.torch.save_file = self._save
        self._before.clear()

    def _saving(self, tensors: dict, path: Path, **options: object) -> None:
        end = time.monotonic() + self.SECONDS
        while sum(sizes := self._sizes()) > self._most and time.monotonic() < end:
            time.sleep(0.05)
        self.seen.append(sizes)
        self._save(tensors, path, **options)

    def _sizes(self) -> list[int]:
        new = [tensor for tensor in self._plain() if id(tensor) not in self._before]
        sizes = {tensor.untyped_storage().data_ptr(): tensor.numel() * tensor.element_size() for tensor in new}
        return [size for place, size in sizes.items() if place not in self._own]

    @staticmethod
    def _plain() -> list[torch.Tensor]:
        gc.collect()
        shapes = {tuple(tensor.shape) for tensor in plain().parameters()}
        return [t for t in gc.get_objects() if type(t) is torch.Tensor and tuple(t.shape) in shapes]


if __name__ == "__main__":
    arguments = int(sys.argv[1]), sys.argv[2], sys.argv[3:], globals()
    torch.multiprocessing.start_processes(main, arguments, nprocs=arguments[0], start_method="fork")
    print("ranks agree")
