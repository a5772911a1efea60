"""Models that go through piece by piece: the same files as at once, whatever the tensors, and the same checks."""

import json
import logging
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import weight_averaging.offline.passes.pieces as module
from tests.support.forms import command
from tests.support.small_models import model_of, randomise
from weight_averaging.averages import EMA, LAWA, Merge, SnapshotError
from weight_averaging.offline import Plan, Snapshots, latest_of
from weight_averaging.offline.recording import SnapshotWriter
from weight_averaging.offline.writing.to_files import average_to_files

TYPES = [torch.float32, torch.bfloat16, torch.float64, torch.complex64, torch.int64]
SHAPES = [(), (0,), (1,), (7,), (23,), (5, 7), (3, 2, 5)]


def averaged(folder, out, wanted, *, budget=10**9, float32=False, suffix=".safetensors"):
    """The bytes of every average; `out` is a new folder."""
    out.mkdir()
    snapshots = Snapshots(folder)
    plan = Plan(wanted, snapshots.steps, float32=float32, latest=latest_of(snapshots.layout, known=snapshots.latest),
                frozen=snapshots.frozen)  # fmt: skip
    outputs = {pair: out / f"{number}{suffix}" for number, pair in enumerate(wanted)}
    count = []
    average_to_files(snapshots, plan, outputs, budget, count.append)
    assert sum(count) == snapshots.nbytes * len(plan.needed)  # each byte once
    return len(count), [torch.load(path) if suffix == ".pt" else path.read_bytes() for path in outputs.values()]


def in_pieces(monkeypatch, block=4, size=200):
    monkeypatch.setattr(module, "BLOCK", block)
    monkeypatch.setattr(module, "IN_CACHE", size)


@pytest.fixture
def small(monkeypatch):
    in_pieces(monkeypatch)


def written(folder, layout, form, count=4):
    folder.mkdir()
    for step in range(1, count + 1):
        generator = torch.Generator().manual_seed(step)
        state = {
            f"t{i}": (100 * torch.randn(shape, generator=generator)).to(dtype)
            for i, (shape, dtype) in enumerate(layout)
        }
        if form == "torch":
            torch.save(state, folder / f"step_{step}.pt")
        elif form == "old":
            torch.save(state, folder / f"step_{step}.pt", _use_new_zipfile_serialization=False)
        elif form == "safetensors":
            save_file(state, folder / f"step_{step}.safetensors")
        else:
            part = folder / f"checkpoint-{step}"
            part.mkdir()
            names = list(state)
            files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
            for file, own in files.items():
                save_file({name: state[name] for name in own}, part / file, {"format": "pt"})
            index = {"metadata": {}, "weight_map": {name: file for file, own in files.items() for name in own}}
            (part / "model.safetensors.index.json").write_text(json.dumps(index))


@settings(max_examples=40, deadline=None)
@given(
    layout=st.lists(st.tuples(st.sampled_from(SHAPES), st.sampled_from(TYPES)), min_size=2, max_size=6).filter(
        lambda layout: any(shape != (0,) for shape, _ in layout)  # of no elements at all: refused
    ),
    form=st.sampled_from(["torch", "safetensors", "parts", "old"]),
    block=st.integers(1, 9),
    size=st.integers(1, 400),
    float32=st.booleans(),
)
def test_in_pieces_is_the_same_as_at_once(tmp_path_factory, layout, form, block, size, float32):
    layout = [(shape, torch.float32 if dtype == torch.int64 and len(shape) > 1 else dtype) for shape, dtype in layout]
    assume(any(shape != (0,) for shape, _ in layout))  # weights without elements are refused
    root = tmp_path_factory.mktemp("run")
    written(root / "run", layout, form)
    wanted = [(LAWA(window=3), 4), (EMA(decay=0.5), 3), (EMA(decay=0.5), 4), (Merge(shape="linear", share=0.5), 4)]
    _, once = averaged(root / "run", root / "once", wanted, float32=float32)
    with pytest.MonkeyPatch.context() as patch:
        in_pieces(patch, block, size)
        _, pieces = averaged(root / "run", root / "pieces", wanted, float32=float32)
        assert pieces == once
        _, states = averaged(root / "run", root / "torch", wanted[:1], float32=float32, suffix=".pt")
    assert {name: value.dtype for name, value in states[0].items()} == {
        f"t{i}": torch.float32 if float32 and dtype.is_floating_point else dtype for i, (_, dtype) in enumerate(layout)
    }


def test_groups_are_as_small_as_the_cache_and_cover_every_element_once(small):
    layout = {"a": ((1000,), torch.bfloat16), "b": ((3,), torch.float32), "c": ((10, 10), torch.complex64)}
    cut = module.groups(layout, models=2, budget=10**9, cut=True)
    assert module.memory(layout, 2, cut) <= 200
    for name, (shape, _) in layout.items():
        ranges = [(piece.start, piece.stop) for group in cut for piece in group if piece.name == name]
        assert ranges[0][0] == 0
        assert ranges[-1][1] == torch.Size(shape).numel()
        assert all(one[1] == other[0] for one, other in pairwise(ranges))
    whole = module.groups(layout, models=2, budget=10**9, cut=False)
    assert [[piece.name for piece in group] for group in whole] == [["a", "b", "c"]]
    assert all(piece.whole for piece in whole[0])


def test_what_cannot_be_mapped_goes_tensor_by_tensor(tmp_path, small):
    layout = [((50,), torch.float32)] * 3
    for form, mapped in (("old", False), ("torch", True), ("safetensors", True), ("parts", True)):
        written(tmp_path / form, layout, form)
        assert Snapshots(tmp_path / form).mapped == mapped
    wanted = [(LAWA(window=2), 4)]
    assert averaged(tmp_path / "old", tmp_path / "one", wanted)[0] == 2  # one group of two snapshots
    assert averaged(tmp_path / "old", tmp_path / "two", wanted, budget=500)[0] == 6
    assert averaged(tmp_path / "torch", tmp_path / "three", wanted)[0] > 6


def test_a_transposed_tensor_is_not_cut(tmp_path, small):
    (tmp_path / "run").mkdir()
    for step in (1, 2):
        torch.save({"w": torch.arange(60.0).mul(step).view(6, 10).t()}, tmp_path / "run" / f"step_{step}.pt")
    assert not Snapshots(tmp_path / "run").mapped
    _, (state,) = averaged(tmp_path / "run", tmp_path / "out", [(LAWA(window=2), 2)], suffix=".pt")
    torch.testing.assert_close(state["w"], torch.arange(60.0).mul(1.5).view(6, 10).t())


def test_a_mask_of_infinities_stays_and_a_nan_is_told(tmp_path, small):
    (tmp_path / "run").mkdir()
    mask = torch.full((60, 60), float("-inf")).triu(1)
    for step in (1, 2):
        weights = torch.full((500,), float(step))
        save_file({"mask": mask, "w": weights}, tmp_path / "run" / f"step_{step}.safetensors")
    _, (state,) = averaged(tmp_path / "run", tmp_path / "out", [(LAWA(window=2), 2)], suffix=".pt")
    assert torch.equal(state["mask"], mask)
    assert torch.equal(state["w"], torch.full((500,), 1.5))
    weights[490] = float("nan")
    save_file({"mask": mask, "w": weights}, tmp_path / "run" / "step_2.safetensors")
    with pytest.raises(SnapshotError, match=r"^step 2: w holds a NaN"):
        averaged(tmp_path / "run", tmp_path / "new", [(LAWA(window=2), 2)])
    assert not list((tmp_path / "new").iterdir())


def test_quantised_weights_that_change_in_a_late_piece_are_refused(tmp_path, small):
    (tmp_path / "run").mkdir()
    for step in (1, 2):
        weights = torch.zeros(40, 10, dtype=torch.int8)
        weights[39] = step
        save_file({"w": weights, "scale": torch.ones(1)}, tmp_path / "run" / f"step_{step}.safetensors")
    with pytest.raises(SnapshotError, match="step 2: w is int8 and changes along the snapshots"):
        averaged(tmp_path / "run", tmp_path / "out", [(LAWA(window=2), 2)])


def test_frozen_tensors_that_change_are_told_once(tmp_path, small, caplog):
    model = model_of()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model[-1].weight.requires_grad_(True)
    writer = SnapshotWriter(tmp_path / "run", interval=1)
    for step in (1, 2):
        randomise(model, step)
        writer.update(step, model)
    writer.close()
    with caplog.at_level(logging.WARNING, "weight_averaging"):
        averaged(tmp_path / "run", tmp_path / "out", [(LAWA(window=2), 2)])
    assert [message for message in caplog.messages if "frozen tensors change" in message] == caplog.messages
    assert len(caplog.messages) == 1


def test_float32_is_for_masks_and_what_is_excluded_too(tmp_path):
    (tmp_path / "run").mkdir()
    for step in (1, 2):
        state = {"mask": torch.tensor([0.0, float("-inf")]), "w": torch.ones(3), "conv.weight_u": torch.ones(2)}
        save_file(
            {name: value.bfloat16() for name, value in state.items()}, tmp_path / "run" / f"step_{step}.safetensors"
        )
    _, (state,) = averaged(tmp_path / "run", tmp_path / "out", [(LAWA(window=2), 2)], float32=True, suffix=".pt")
    assert {name: value.dtype for name, value in state.items()} == dict.fromkeys(
        ("mask", "w", "conv.weight_u"), torch.float32
    )
    averaged(tmp_path / "run", tmp_path / "files", [(LAWA(window=2), 2)], float32=True)


@pytest.mark.parametrize("form", ["torch", "safetensors", "parts", "old"])
def test_a_checkpoint_that_is_replaced_meanwhile_is_told_and_one_that_is_deleted_is_not_missed(tmp_path, small, form):
    layout = [((50,), torch.float32)] * 4
    for name, act in (("replaced", None), ("deleted", lambda path: path.unlink())):
        run, wanted = tmp_path / name, [(LAWA(window=4), 4)]
        written(run, layout, form)
        _, expected = averaged(run, tmp_path / f"{name}_expected", wanted)
        snapshots = Snapshots(run)
        plan = Plan(wanted, snapshots.steps, latest=())
        path = next(path for path in sorted(snapshots.paths[2].rglob("*.safetensors")) or [snapshots.paths[2]])
        read = []

        def on_read(count, act=act, path=path, read=read):
            read.append(count)
            if len(read) == 2:
                contents = path.read_bytes()
                path.unlink()
                if act is None:
                    path.write_bytes(contents)

        out = tmp_path / f"{name}.safetensors"
        if act is None:
            with pytest.raises(SnapshotError, match=f"{path.name} changed while it was averaged: average again when"):
                average_to_files(snapshots, plan, {wanted[0]: out}, 450, on_read)
            assert not out.exists()
        elif snapshots.mapped:
            average_to_files(snapshots, plan, {wanted[0]: out}, 450, on_read)
            assert out.read_bytes() == expected[0]


def test_a_transposed_tensor_that_is_not_averaged_is_written_too(tmp_path):
    (tmp_path / "run").mkdir()
    counts = torch.arange(6).view(2, 3).t()
    for step in (1, 2):
        torch.save({"counts": counts, "w": torch.ones(3)}, tmp_path / "run" / f"step_{step}.pt")
    for suffix in (".pt", ".safetensors"):
        _, (state,) = averaged(tmp_path / "run", tmp_path / f"out{suffix}", [(LAWA(window=2), 2)], suffix=suffix)
        if suffix == ".pt":
            assert torch.equal(state["counts"], counts)


def test_an_empty_file_is_told(tmp_path):
    (tmp_path / "step_1.safetensors").touch()
    with pytest.raises(SnapshotError, match=r"step_1\.safetensors is not a safetensors file, or is truncated: 0 bytes"):
        Snapshots(tmp_path)


@pytest.mark.parametrize(
    ("dtypes", "says"),
    [
        ((torch.float64,), "memory 16 B: 1 float64 copy and a snapshot"),
        ((torch.bfloat16,), "memory 6 B: 1 float32 copy and a snapshot"),
        ((torch.complex64,), "memory 16 B: 1 float32 copy and a snapshot"),
        ((torch.float32, torch.float64), "memory 24 B: 1 float32 and float64 copy and a snapshot"),
    ],
)
def test_the_plan_names_the_type_of_its_sums(tmp_path, capsys, dtypes, says):
    for step in range(1, 5):
        torch.save({str(kind): torch.ones(1, dtype=kind) for kind in dtypes}, tmp_path / f"step_{step}.pt")
    said = command(capsys, "average", tmp_path, "--lawa=window=4", f"--out={tmp_path / 'a.safetensors'}")
    assert says in said
