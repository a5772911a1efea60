"""Averages that are written by pieces, or held on disk until the end: the same as those that are held in memory."""

import itertools
import pickle
import resource
import signal
import warnings
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.forms import command, is_mean, state_of
from tests.support.killing import Lines, in_a_process
from tests.weight_averaging.torch.test_ranks import run
from weight_averaging.averages import LAWA
from weight_averaging.offline import Plan, Snapshots
from weight_averaging.offline.forms import distributed, open_checkpoint
from weight_averaging.offline.held import Held
from weight_averaging.offline.writing import to_files

dcp = pytest.importorskip("torch.distributed.checkpoint")
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.distributed is")  # that there is no process group

TYPES = [torch.float32, torch.bfloat16, torch.float64, torch.complex64, torch.int64, torch.bool]
SHAPES = [(), (0,), (1,), (7,), (23,), (5, 7), (3, 2, 5)]
layouts = st.lists(st.tuples(st.sampled_from(SHAPES), st.sampled_from(TYPES)), min_size=1, max_size=6)


def state_like(layout):
    return {
        f"m{i % 2}.t{i}": torch.arange(torch.Size(shape).numel()).add(i).view(shape).to(dtype)
        for i, (shape, dtype) in enumerate(layout)
    }


def in_parts(data, state):
    """The tensors as parts of one to nine elements, each in its order, and between them in any."""
    queues = []
    for name, value in state.items():
        size = data.draw(st.integers(1, 9))
        starts = range(0, value.numel(), size)
        parts = [(name, start, value.view(-1)[start : start + size]) for start in starts]
        queues.append([(name, 0, value)] if len(parts) < 2 else parts)
    order = data.draw(st.permutations([number for number, queue in enumerate(queues) for _ in queue]))
    return [queues[number].pop(0) for number in order]


def nested(state, places):
    tree: dict = {}
    for name, value in state.items():
        inner = tree
        for part in places[name][:-1]:
            inner = inner.setdefault(part, {})
        inner[places[name][-1]] = value
    return tree


def same_bits(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert (
            found[name].numpy(force=True).tobytes() == value.numpy(force=True).tobytes()
            if (value.dtype != torch.bfloat16)
            else torch.equal(found[name], value)
        )


@settings(max_examples=40, deadline=None)
@given(data=st.data(), layout=layouts, most=st.none() | st.integers(0, 300), depth=st.integers(0, 2))
def test_a_sharded_folder_by_files_is_what_torch_saves_at_once(tmp_path_factory, data, layout, most, depth):
    root = tmp_path_factory.mktemp("run")
    state = state_like(layout)
    places = {name: (*("app", "model")[:depth], name) for name in state}
    kinds = {name: (tuple(value.shape), value.dtype) for name, value in state.items()}
    (root / "pieces").mkdir()
    contents = distributed._Contents(root / "pieces", kinds, places, [], most)
    for name, start, part in in_parts(data, state):
        contents.put(name, start, part)
        assert not (root / "pieces" / ".metadata").exists()  # which makes a checkpoint of it
    assert not contents._held
    contents.end({})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(nested(state, places), checkpoint_id=root / "once")
        found = {}
        for kind in ("pieces", "once"):
            empty = {name: torch.zeros_like(value) for name, value in state.items()}
            dcp.load(nested(empty, places), checkpoint_id=root / kind)
            found[kind] = empty
    same_bits(found["once"], state)
    same_bits(found["pieces"], state)
    metadata = [pickle.loads((root / kind / ".metadata").read_bytes()) for kind in ("pieces", "once")]
    assert metadata[0].state_dict_metadata == metadata[1].state_dict_metadata
    assert metadata[0].planner_data == metadata[1].planner_data
    files = sorted(root.glob("pieces/*.distcp"))
    if most is None:
        assert [file.read_bytes() for file in files] == [file.read_bytes() for file in root.glob("once/*.distcp")]
    else:
        assert len(files) == len(distributed._neighbours(kinds, most))


@given(layout=layouts, most=st.integers(0, 300))
def test_a_file_takes_neighbours_of_so_many_bytes_or_one_larger_tensor(layout, most):
    kinds = {f"t{i}": kind for i, kind in enumerate(layout)}
    size = {name: torch.Size(shape).numel() * dtype.itemsize for name, (shape, dtype) in kinds.items()}
    files = distributed._neighbours(kinds, most)
    assert list(itertools.chain(*files)) == list(kinds)
    assert all(len(file) == 1 or sum(size[name] for name in file) <= most for file in files)
    for one, other in itertools.pairwise(files):
        assert sum(size[name] for name in one) + size[other[0]] > most


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=8), most=st.integers(0, 300))
@settings(max_examples=20, deadline=None)
def test_no_more_than_a_file_of_a_sharded_folder_is_held(tmp_path_factory, sizes, most):
    folder = tmp_path_factory.mktemp("folder")
    state = {f"t{i}": torch.ones(size) for i, size in enumerate(sizes)}
    kinds = {name: (tuple(value.shape), value.dtype) for name, value in state.items()}
    contents = distributed._Contents(folder, kinds, {name: (name,) for name in state}, [], most)
    for name, value in state.items():
        contents.put(name, 0, value)
        assert sum(one.nbytes for one in contents._held.values()) <= most
    assert len(list(folder.glob("*.distcp"))) == len(distributed._neighbours(kinds, most))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), layout=layouts)
def test_what_is_held_on_disk_is_what_is_held_in_memory(tmp_path_factory, data, layout):
    root = tmp_path_factory.mktemp("held")
    state = state_like(layout)
    kinds = {name: (tuple(value.shape), value.dtype) for name, value in state.items()}
    parts = in_parts(data, state)
    saved = []
    for most in (None, 0):
        held = Held({**kinds, "none": ((2,), torch.float32)}, root / "x.pt", most)
        for part in parts:
            held.put(*part)
        found = held.state()
        assert sorted(found) == sorted(state)
        same_bits({name: found[name] for name in state}, state)
        torch.save(found, root / "x.pt")
        saved.append((root / "x.pt").read_bytes())
        held.close()
    assert saved[0] == saved[1]
    assert [path.name for path in root.iterdir()] == ["x.pt"]


def test_a_full_disk_is_told_by_the_name_of_the_average(tmp_path):
    held = Held({"w": ((2**12,), torch.float32)}, tmp_path / "x.pt", 0)
    held.put("w", 0, torch.zeros(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: .*x\.pt"):
            held.put("w", 1000, torch.ones(3000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        held.close()


def write_run(folder, form, steps=(1, 2, 3)):
    """Checkpoints of a form; returns where an average goes."""
    folder.mkdir()
    for step in steps:
        state = state_of(step)
        if form == "pt":
            torch.save({"model": state, "ema": state_of(step + 10), "step": step}, folder / f"step_{step}.pt")
        elif form == "bin":
            (folder / f"checkpoint-{step}").mkdir()
            torch.save(state, folder / f"checkpoint-{step}" / "pytorch_model.bin")
        elif form == "zip":
            with zipfile.ZipFile(folder / f"model_{step}_steps.zip", "w") as file:
                file.writestr("data", f'{{"num_timesteps": {step}}}')
                with file.open("policy.pth", "w", force_zip64=True) as part:
                    torch.save(state, part)
        elif form == "module":
            model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 5))
            model[1].bias.data = model[0].bias.data.repeat(3)[:5]
            torch.save({"epoch": step, "model": model}, folder / f"epoch{step}.pt")
        elif form == "msgpack":
            serialization = pytest.importorskip("flax.serialization")
            tree = {"params": {name: value.numpy() for name, value in state.items()}, "step": step}
            (folder / f"checkpoint_{step}").write_bytes(serialization.to_bytes(tree))
        elif form == "sharded":
            dcp.save({"model": state}, checkpoint_id=folder / f"step-{step}")
    return {"pt": "out.pt", "bin": "out", "zip": "out.zip", "module": "out.pt", "sharded": "out"}.get(
        form, "out.msgpack"
    )


def contents_of(path):
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {str(file.relative_to(path)): file.read_bytes() for file in files if file.is_file()}


@pytest.mark.parametrize("form", ["pt", "bin", "zip", "module", "msgpack"])
def test_an_average_larger_than_the_memory_is_the_same_file(tmp_path, capsys, form):
    name = write_run(tmp_path / "run", form)
    found = []
    for memory in ("4", "1e-9"):
        out = tmp_path / memory / name
        out.parent.mkdir()
        said = command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}", f"--memory-gb={memory}")
        assert "load: " in said
        found.append(contents_of(out))
        assert [path.name for path in out.parent.iterdir()] == [name]
    if form == "zip":  # it has the times of its members
        with zipfile.ZipFile(tmp_path / "4" / name) as one, zipfile.ZipFile(tmp_path / "1e-9" / name) as other:
            assert [(info.filename, info.CRC) for info in one.infolist()] == [
                (info.filename, info.CRC) for info in other.infolist()
            ]
    else:
        assert found[0] == found[1]


def test_names_without_what_wrappers_add_in_a_sharded_folder(tmp_path, capsys):
    for step in (1, 2):
        state = {f"_orig_mod.{name}": value for name, value in state_of(step).items()}
        dcp.save({"model": state, "step": torch.tensor(step)}, checkpoint_id=tmp_path / "run" / f"step-{step}")
    for flags, prefix in (([], "_orig_mod."), (["--plain-names"], "")):
        out = tmp_path / f"out{len(flags)}"
        said = command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}", *flags)
        assert "not in the average" not in said
        empty = {f"{prefix}{name}": torch.zeros_like(value) for name, value in state_of(1).items()}
        dcp.load({"model": empty}, checkpoint_id=out)
        is_mean({name.removeprefix(prefix): value for name, value in empty.items()}, [state_of(1), state_of(2)])


def test_a_sharded_folder_of_many_files_loads_on_any_number_of_ranks(tmp_path, capsys):
    write_run(tmp_path / "run", "sharded")
    out = tmp_path / "out"
    command(capsys, "average", tmp_path / "run", "--lawa=window=3", f"--out={out}", "--memory-gb=1e-7")
    assert len(list(out.glob("*.distcp"))) > 1
    source = open_checkpoint(out)
    torch.save(source.read(list(source.layout)), tmp_path / "whole.pt")
    for ranks in (2, 3):
        run(ranks, tmp_path, f"loads:{out}:{tmp_path / 'whole.pt'}", module="sharded_checkpoints")


@pytest.mark.parametrize("form", ["sharded", "pt"])
def test_a_kill_anywhere_leaves_nothing_that_looks_finished(tmp_path, capsys, form):
    name = write_run(tmp_path / "run", form)
    wanted = [(LAWA(window=2), 3)]
    snapshots = Snapshots(tmp_path / "run")

    def average(out):
        plan = Plan(wanted, snapshots.steps, latest=())
        to_files.average_to_files(snapshots, plan, {wanted[0]: out}, 100, overwrite=False)

    def count(out):
        lines = Lines(to_files, "average_to_files", lambda *_, **__: True)
        average(out)
        (tmp_path / "count").write_text(str(lines.seen))

    def die_in(last, out):
        Lines(to_files, "average_to_files", lambda *_, **__: True, last, lambda where: None)
        average(out)

    (tmp_path / "whole").mkdir()
    process = in_a_process(count, tmp_path / "whole" / name)
    process.join()
    whole = contents_of(tmp_path / "whole" / name)
    lines = int((tmp_path / "count").read_text())
    for number, last in enumerate(range(lines // 20, lines, lines // 12)):
        out = tmp_path / str(number) / name
        out.parent.mkdir()
        process = in_a_process(die_in, last, out)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        left = [path for path in out.parent.iterdir() if not path.name.startswith(".partial_")]
        if left:  # in its place: then it is whole
            assert left == [out]
            assert contents_of(out).keys() == whole.keys()
            continue
        assert "holds no" in command(capsys, "inspect", out.parent)
        average(out)
        for file, data in contents_of(out).items():
            assert data == whole[file] or file == ".metadata"  # it has a name made at random
