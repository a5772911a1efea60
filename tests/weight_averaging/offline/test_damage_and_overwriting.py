"""Files that are damaged, that several processes write, or that are there already."""

import errno
import json
import multiprocessing
import os
import struct
import time
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.forms import command, is_mean, state_of
from weight_averaging.atomic_file import partial_beside, replacing
from weight_averaging.averages import SnapshotError
from weight_averaging.offline import Snapshots
from weight_averaging.torch import EMA as OnlineEMA


@pytest.mark.parametrize("transposed", [False, True])
def test_a_bit_that_flipped_in_a_zip_is_told(tmp_path, capsys, transposed):
    for step in (1, 2):
        value = torch.randn(700, 300)
        torch.save(
            {"model": {"w": torch.randn(9), "v": value.t() if transposed else value}}, tmp_path / f"step_{step}.pt"
        )
    path, out = tmp_path / "step_2.pt", tmp_path / "x.safetensors"
    whole = path.read_bytes()
    for name, at in (("data/0", 6), ("data/1", 800_000), ("data.pkl", 40)):
        flip(path, name, at)
        said = command(capsys, "average", tmp_path, "--lawa=window=2", f"--out={out}")
        assert "step_2.pt is damaged" in said, name
        assert not out.exists()
        path.write_bytes(whole)
    assert "load: " in command(capsys, "average", tmp_path, "--lawa=window=2", f"--out={out}")
    flip(path, "data/0", 6)
    snapshots = Snapshots(tmp_path)
    with pytest.raises(SnapshotError, match=r"w is not as its checksum in the file says"):
        list(snapshots.stream([1, 2]))


def flip(path, record, at):
    """Change a bit of a record of a zip."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        start = next(info.header_offset for info in file.infolist() if info.filename.endswith(record))
    name, extra = struct.unpack_from("<HH", data, start + 26)
    data[start + 30 + name + extra + at] ^= 4
    path.write_bytes(data)


def test_files_without_checksums_are_read(tmp_path):
    set_option = getattr(torch.serialization, "set_crc32_options", None)
    if set_option is None:
        pytest.skip("this torch always writes them")
    set_option(False)
    try:
        torch.save({"w": torch.ones(5)}, tmp_path / "step_1.pt")
    finally:
        set_option(True)
    assert next(Snapshots(tmp_path).stream([1]))[1]["w"].tolist() == [1.0] * 5


def write_slowly(path, value, overwrite, results):
    try:
        with replacing(path, overwrite=overwrite) as file:
            for _ in range(20):
                file.write(bytes([value]) * 1000)
                time.sleep(0.005)
        results.put("")
    except OSError as error:
        results.put(error.strerror)


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_that_write_one_file_do_not_mix(tmp_path, overwrite):
    path = tmp_path / "x.pt"
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    writers = [context.Process(target=write_slowly, args=(path, value, overwrite, results)) for value in (1, 2, 3)]
    for writer in writers:
        writer.start()
    said = sorted(results.get() for _ in writers)
    for writer in writers:
        writer.join()
    assert len(set(path.read_bytes())) == 1
    assert path.stat().st_size == 20_000
    assert said == (["", "", ""] if overwrite else ["", *["there meanwhile, and not written over"] * 2])
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed_later(tmp_path):
    context = multiprocessing.get_context("fork")
    process = context.Process(target=os._exit, args=(0,))
    process.start()
    process.join()
    path = tmp_path / "x.pt"
    mine = partial_beside(path)
    left = [path.with_name(mine.name.replace(f"~{os.getpid()}~", f"~{process.pid}~"))]
    left.append(left[0].with_name(left[0].name.replace(".partial_x.pt", ".partial_y.pt")))  # of another file
    left.append(left[0].with_name(left[0].name.replace("~", "~another", 1)))  # of another machine
    for one in (mine, *left):
        one.write_bytes(b"half")
    with replacing(path) as file:
        file.write(b"whole")
    assert all(one.exists() for one in (mine, *left))  # it may be of a container with other processes
    for one in (mine, *left):
        os.utime(one, (0, 0))
    with replacing(path) as file:
        file.write(b"whole")
    assert [one.exists() for one in (mine, *left)] == [True, False, True, True]


def test_nothing_is_written_over_unasked(tmp_path, capsys):
    for step in (1, 2):
        torch.save({"model": state_of(step)}, tmp_path / f"step_{step}.pt")
    before = (tmp_path / "step_2.pt").read_bytes()
    (tmp_path / "link.pt").symlink_to("step_2.pt")
    (tmp_path / "dangling.pt").symlink_to("nothing.pt")
    for name in ("step_2.pt", "link.pt", "dangling.pt"):
        out = tmp_path / name
        files = [tmp_path / "step_1.pt", tmp_path / "step_2.pt"]
        for what in (["average", *files, "--lawa=window=2"], ["merge", *files]):
            said = command(capsys, *what, f"--out={out}")
            assert said == f"error: {out} is there already: name another file, or add --overwrite\n"
    assert (tmp_path / "step_2.pt").read_bytes() == before
    command(capsys, "merge", *files, f"--out={tmp_path / 'step_2.pt'}", "--overwrite")
    is_mean(torch.load(tmp_path / "step_2.pt")["model"], [state_of(1), state_of(2)])
    averager = OnlineEMA(model := torch.nn.Linear(2, 2), decay=0.5)
    averager.update(1)
    torch.save({"model": model.state_dict(), "averager": averager.state_dict()}, tmp_path / "c.pt")
    assert "is there already" in command(capsys, "extract", tmp_path / "c.pt", f"--out={tmp_path / 'c.pt'}")
    assert "load: " in command(capsys, "extract", tmp_path / "c.pt", f"--out={tmp_path / 'c.pt'}", "--overwrite")


def test_a_folder_is_replaced_whole_if_asked(tmp_path, capsys):
    for step in (1, 2):
        (tmp_path / f"checkpoint-{step}").mkdir()
        save_file(state_of(step), tmp_path / f"checkpoint-{step}" / "model.safetensors")
    folders = [tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"]
    (folders[1] / "notes.txt").write_text("kept")
    command(capsys, "merge", *folders, f"--out={folders[0]}", "--overwrite")
    is_mean(load_file(folders[0] / "model.safetensors"), [state_of(1), state_of(2)])
    assert sorted(path.name for path in folders[0].iterdir()) == ["model.safetensors", "notes.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("no checkpoint")
    said = command(capsys, "merge", *folders, f"--out={tmp_path / 'mine'}", "--overwrite")
    assert said.endswith("mine is there already: name a new folder\n")


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def link(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", link)
    path = tmp_path / "x.pt"
    with replacing(path, overwrite=False) as file:
        file.write(b"first")
    with pytest.raises(FileExistsError) as error, replacing(path, overwrite=False) as file:
        file.write(b"second")
    assert (error.value.strerror, error.value.filename) == ("there meanwhile, and not written over", str(path))
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("last", ["model.safetensors", "model.safetensors.index.json", ".metadata"])
def test_a_folder_that_is_being_written_is_named(tmp_path, capsys, last):
    """What makes it a checkpoint comes last; the average is as of the one before, and says that there is another."""
    for step in (900, 1000):
        folder = tmp_path / f"checkpoint-{step}"
        if last == ".metadata":
            pytest.importorskip("torch.distributed.checkpoint").save(
                {"model": state_of(step)}, checkpoint_id=str(folder)
            )
        else:
            folder.mkdir()
            part = last if last == "model.safetensors" else "model-00001-of-00001.safetensors"
            save_file(state_of(step), folder / part)
            if part != last:
                weights = dict.fromkeys(state_of(step), part)
                (folder / last).write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    (tmp_path / "checkpoint-1000" / last).unlink()
    (tmp_path / "logs-3").mkdir()
    said = command(capsys, "average", tmp_path, "--lawa=window=1", f"--out={tmp_path / 'x.safetensors'}")
    assert "left out: checkpoint-1000 (no whole checkpoint, as while it is being written)\n" in said
    assert "lawa window=1 as of step 900," in said
