"""Checkpoints in buckets by fsspec, with its memory and its local file system in the place of one."""

import errno
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from tests.support.forms import command, is_mean, state_of
from weight_averaging import cli, offline
from weight_averaging.averages import SnapshotError
from weight_averaging.offline import remote
from weight_averaging.offline.remote import Remote

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(autouse=True)
def nothing_left(tmp_path, monkeypatch):
    """A temporary folder of its own, empty in the end, and an empty memory."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    yield
    assert not os.listdir(tmp_path / "temporary")
    assert not remote._FILES
    memory.store.clear()


@pytest.fixture(params=["memory", "local"])
def bucket(request, tmp_path):
    """The URL of an empty folder in a bucket, and its file system."""
    place = "memory://bucket" if request.param == "memory" else f"local://{tmp_path}/bucket"
    return place, fsspec.filesystem(request.param)


def put(bucket, folder: Path, name: str = "run") -> str:
    url, system = bucket
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        target = f"{url}/{name}/{file.relative_to(folder).as_posix()}"
        system.makedirs(target.rpartition("/")[0], exist_ok=True)
        system.pipe_file(target, file.read_bytes())
    return f"{url}/{name}"


def digest(path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_safetensors_are_read_by_ranges_and_written_back(bucket, tmp_path, capsys, monkeypatch):
    (tmp_path / "run").mkdir()
    for step in (10, 20, 30):
        state = {f"w{index}": torch.randn(300, 200) for index in range(6)} | {"odd": torch.arange(7, dtype=torch.int8)}
        save_file(state, tmp_path / "run" / f"step_{step}.safetensors")
    (tmp_path / "run/optimizer.pt").write_bytes(b"x" * 3_000_000)
    url = put(bucket, tmp_path / "run")
    read = []
    kind = type(bucket[1])
    cat = kind.cat_file

    def seen(self, path, start=None, end=None, **more):
        read.append((path, start, end))
        return cat(self, path, start=start, end=end, **more)

    monkeypatch.setattr(kind, "cat_file", seen)
    out = f"{bucket[0]}/out/average.safetensors"
    said = command(capsys, "average", url, "--ema=decay=.5", f"--out={out}")
    command(capsys, "average", tmp_path / "run", "--ema=decay=.5", f"--out={tmp_path / 'local.safetensors'}")
    assert hashlib.sha256(bucket[1].cat_file(out)).hexdigest() == digest(tmp_path / "local.safetensors")
    assert " in 4 files, of them " in said
    assert f"{url}: 3 snapshots, steps 10 to 30" in said
    assert f"{out}: ema decay=0.5 as of step 30" in said
    assert said.splitlines()[-1].endswith(f'.get("{out}", "here", recursive=True)')
    assert "temporary" not in said.replace(f"copied into {tmp_path / 'temporary'} when", "")
    assert all("optimizer" not in path for path, _, _ in read)
    tensors = sum(end - start for path, start, end in read if start)
    assert tensors == 3 * (6 * 300 * 200 * 4 + 7)  # each byte once
    said = command(capsys, "average", url, "--ema=decay=.5", f"--out={out}")
    assert said == f"error: {out} is there already: name another file, or add --overwrite\n"
    command(capsys, "average", url, "--lawa=window=1", f"--out={out}", "--overwrite")
    assert torch.equal(load_from(bucket[1], out)["w3"], load_file(tmp_path / "run/step_30.safetensors")["w3"])


def load_from(system, url) -> dict[str, torch.Tensor]:
    return load(system.cat_file(url))


def test_files_of_torch_are_copied_and_removed(bucket, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(remote, "_SMALL", 100)  # so that they are copied when they are opened
    states = [state_of(seed) for seed in range(3)]
    (tmp_path / "run").mkdir()
    for step, state in enumerate(states, start=1):
        torch.save({"model": state, "global_step": step, "val_loss": 1 / step}, tmp_path / "run" / f"c{step}.pt")
    url = put(bucket, tmp_path / "run")
    command(capsys, "average", url, "--lawa=window=3", f"--out={tmp_path / 'here.pt'}")
    is_mean(torch.load(tmp_path / "here.pt")["model"], states)
    said = command(capsys, "inspect", url)
    assert "checkpoints: 3, steps 1, 2, 3" in said
    assert f"next: weight-averaging average {url} --lawa" in said
    out = f"{bucket[0]}/merged.safetensors"
    weights = f"{url}/c1.pt=.5,{url}/c3.pt=.5"
    assert f"1: {url}/c1.pt, weight 0.5" in command(capsys, "merge", f"--weights={weights}", f"--out={out}")
    is_mean(load_from(bucket[1], out), [states[0], states[2]])
    said = command(capsys, "average", url, "--best=2", "--metric=val_loss", f"--out={bucket[0]}/best.pt")
    assert "made of 2 snapshots, steps 2, 3" in said


def test_folders_of_hugging_face_in_parts(bucket, tmp_path, capsys):
    states = []
    for step in (5, 10):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        state = state_of(step)
        names = list(state)
        parts = {"model-1-of-2.safetensors": names[:2], "model-2-of-2.safetensors": names[2:]}
        for file, own in parts.items():
            save_file({name: state[name] for name in own}, folder / file, {"format": "pt"})
        index = {"weight_map": {name: file for file, own in parts.items() for name in own}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "config.json").write_text("{}")
        (folder / "tokenizer.model").write_bytes(b"t" * 2_000_000)
        (folder / "optimizer.pt").write_bytes(b"o" * 2_000_000)
        states.append(state)
    url, out = put(bucket, tmp_path / "run"), f"{bucket[0]}/average"
    command(capsys, "average", url, "--lawa=window=2", f"--out={out}")
    found = {name.rpartition("/")[2] for name in bucket[1].find(out)}
    assert found == {
        "model-1-of-2.safetensors", "model-2-of-2.safetensors", "model.safetensors.index.json", "config.json",
        "tokenizer.model",
    }  # fmt: skip
    assert bucket[1].cat_file(f"{out}/tokenizer.model") == b"t" * 2_000_000
    averaged = {}
    for part in (1, 2):
        averaged |= load_from(bucket[1], f"{out}/model-{part}-of-2.safetensors")
    is_mean({name: averaged[name] for name in states[0]}, states)
    assert "is there already: name a new folder" in command(capsys, "average", url, "--lawa=window=1", f"--out={out}")
    bucket[1].pipe_file(f"{out}/old.txt", b"of the one before")
    command(capsys, "average", url, "--lawa=window=1", f"--out={out}", "--overwrite")
    assert not bucket[1].exists(f"{out}/old.txt")
    assert bucket[1].exists(f"{url}/checkpoint-10/optimizer.pt")


def test_several_averages_go_beside_what_is_there(bucket, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    for step in (1, 2):
        torch.save(state_of(step), tmp_path / "run" / f"step_{step}.pt")
    url, out = put(bucket, tmp_path / "run"), f"{bucket[0]}/averages"
    bucket[1].makedirs(out, exist_ok=True)
    bucket[1].pipe_file(f"{out}/notes.txt", b"mine")
    command(capsys, "average", url, "--lawa=window=1:2", f"--out={out}")
    assert sorted(name.rpartition("/")[2] for name in bucket[1].find(out)) == [
        "lawa_window1_step_2.safetensors", "lawa_window2_step_2.safetensors", "notes.txt",
    ]  # fmt: skip
    assert bucket[1].cat_file(f"{out}/notes.txt") == b"mine"


def test_in_python(tmp_path):
    (tmp_path / "run").mkdir()
    states = [state_of(seed) for seed in range(2)]
    for step, state in enumerate(states, start=1):
        save_file(state, tmp_path / "run" / f"step_{step}.safetensors")
    url = put(("memory://bucket", fsspec.filesystem("memory")), tmp_path / "run")
    with pytest.raises(SnapshotError, match=r"Remote\(\)\.path"):
        offline.Snapshots(url)
    with Remote() as bucket:
        snapshots = offline.Snapshots(bucket.path(url))
        plan = offline.Plan([(offline.LAWA(window=2), 2)], snapshots.steps)
        (result,) = plan.run(snapshots.stream(plan.needed))
        assert remote.ranges_of(snapshots.paths[1]) is not None
    is_mean(result.state, states)


def test_a_checkpoint_that_is_written_to_meanwhile_is_an_error(tmp_path, capsys, monkeypatch):
    (tmp_path / "run").mkdir()
    for step in (1, 2):
        save_file({"w": torch.full((9,), float(step))}, tmp_path / "run" / f"step_{step}.safetensors")
    memory = fsspec.filesystem("memory")
    url = put(("memory://bucket", memory), tmp_path / "run")
    kind, written = type(memory), []
    cat = kind.cat_file

    def writing(self, path, start=None, end=None, **more):
        found = cat(self, path, start=start, end=end, **more)
        if start and not written:
            written.append(path)
            self.pipe_file(path, cat(self, path))
        return found

    monkeypatch.setattr(kind, "cat_file", writing)
    said = command(capsys, "average", url, "--lawa=window=2", "--out=memory://bucket/o.safetensors")
    assert "changed while it was averaged" in said
    assert not memory.exists("/bucket/o.safetensors")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["memory://bucket/none"], "error: memory://bucket/none is not there"),
        (["nowhere://bucket/run"], "error: nowhere://bucket/run cannot be reached: ValueError: Protocol not known"),
        (["memory://bucket/../run"], "error: memory://bucket/../run: name it without '..'"),
        (["adl://bucket/run"], "error: adl://bucket/run"),
        (["file:///no/such/run"], "error: /no/such/run is not there"),
    ],
)
def test_what_is_not_there_or_not_known_ends_in_one_line(tmp_path, capsys, arguments, says):
    said = command(capsys, "average", *arguments, "--lawa=window=1", f"--out={tmp_path / 'o.pt'}")
    assert said.startswith(says)
    assert said.count("\n") == 1


def test_file_urls_are_the_files_themselves_without_fsspec(tmp_path, capsys, monkeypatch):
    torch.save(state_of(1), tmp_path / "step_1.pt")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    out = tmp_path / "with space.pt"
    said = command(capsys, "average", f"file://{tmp_path}/step_1.pt", "--lawa=window=1", f"--out=file://{out}")
    assert f"{out}: lawa window=1" in said
    said = command(capsys, "inspect", "s3://bucket/run")
    assert said == "error: s3://bucket/run is read with fsspec: pip install 'weight-averaging[remote]'\n"


def test_a_full_temporary_folder_is_called_so(tmp_path):
    with Remote() as bucket:
        path = Path(bucket.local("memory://bucket/x.pt"))
        assert bucket.said(OSError(errno.ENOSPC, "No space left", str(path))) == (
            f"memory://bucket/x.pt does not fit into {tmp_path / 'temporary'}: set TMPDIR to a folder on a larger disk"
        )
        assert bucket.said(OSError(errno.ENOSPC, "No space left", "/other")) == "[Errno 28] No space left: '/other'"


def test_an_upload_that_fails_leaves_nothing_there(tmp_path, capsys, monkeypatch):
    memory = fsspec.filesystem("memory")
    (tmp_path / "run").mkdir()
    for step in (1, 2):
        torch.save(state_of(step), tmp_path / "run" / f"step_{step}.pt")
    put_file, calls = type(memory).put_file, []

    def failing(self, local, name, **more):
        calls.append(name)
        if len(calls) == 2:
            raise OSError(errno.EIO, "the line is down")
        put_file(self, local, name, **more)

    monkeypatch.setattr(type(memory), "put_file", failing)
    said = command(capsys, "average", tmp_path / "run", "--lawa=window=1:2", "--out=memory://bucket/averages")
    assert said == ("error: memory://bucket/averages cannot be reached: OSError: [Errno 5] the line is down\n")
    assert len(calls) == 2
    assert not memory.find("/bucket/averages")


def test_what_was_there_stays_where_an_upload_fails(tmp_path, capsys, monkeypatch):
    memory = fsspec.filesystem("memory")
    torch.save(state_of(1), tmp_path / "step_1.pt")
    memory.pipe_file("/bucket/average.pt", b"of before")

    def failing(self, local, name, **more):
        raise OSError(errno.EIO, "the line is down")

    monkeypatch.setattr(type(memory), "put_file", failing)
    out = "--out=memory://bucket/average.pt"
    with pytest.raises(SystemExit):
        cli.main(["average", str(tmp_path / "step_1.pt"), "--lawa=window=1", out, "--overwrite"])
    said = capsys.readouterr()
    assert "the line is down" in said.err
    assert "load:" not in said.out
    assert memory.cat_file("/bucket/average.pt") == b"of before"


def test_names_that_lead_elsewhere_are_refused(tmp_path):
    with pytest.raises(SnapshotError, match="no name of a file below"):
        remote._below(tmp_path, "bucket/run", "bucket/run/../../etc/passwd")
    with pytest.raises(SnapshotError, match="no name of a file below"):
        remote._below(tmp_path, "bucket/run", "elsewhere")
    assert remote._below(tmp_path, "bucket/run", "bucket/run/a..b/c") == tmp_path / "a..b/c"


def test_damage_there_is_seen(tmp_path, capsys):
    memory = fsspec.filesystem("memory")
    save_file({"w": torch.ones(9)}, tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    for name, contents in (("cut", whole[:-4]), ("head", whole[:30]), ("none", b""), ("long", b"\xff" * 99)):
        memory.pipe_file(f"/bucket/{name}/step_1.safetensors", contents)
        said = command(capsys, "average", f"memory://bucket/{name}", "--lawa=window=1", f"--out={tmp_path / 'o.pt'}")
        assert said.startswith("error: "), name
        assert said.count("\n") == 1
        assert f"memory://bucket/{name}/step_1.safetensors" in said
