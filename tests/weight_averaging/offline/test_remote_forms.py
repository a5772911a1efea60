"""Every form of checkpoint comes out of a bucket as it does out of a folder, whatever is copied when."""

import hashlib
import io
import tempfile
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.forms import command, state_of
from weight_averaging.offline import remote

fsspec = pytest.importorskip("fsspec")


def state_dicts(run: Path, step: int) -> None:
    torch.save(state_of(step), run / f"step_{step}.pth.tar")


def lightnings(run: Path, step: int) -> None:
    about = {"pytorch-lightning_version": "2.6.0", "global_step": step, "epoch": step}
    torch.save({"state_dict": state_of(step), "other": state_of(step + 9), **about}, run / f"step={step}.ckpt")


def sharded(run: Path, step: int) -> None:
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group
        dcp.save({"model": state_of(step)}, checkpoint_id=run / f"step_{step}")


def flaxs(run: Path, step: int) -> None:
    serialization = pytest.importorskip("flax.serialization")
    tree = {"params": {"w": state_of(step)["0.weight"].numpy()}, "step": step}
    (run / f"checkpoint_{step}").write_bytes(serialization.to_bytes(tree))


def bins(run: Path, step: int) -> None:
    folder = run / f"checkpoint-{step}"
    folder.mkdir()
    torch.save(state_of(step), folder / "pytorch_model.bin")
    torch.save(state_of(step + 9), folder / "head.pt")
    torch.save({"state": {}, "param_groups": []}, folder / "optimizer.pt")
    (folder / "config.json").write_text("{}")
    (folder / "vocabulary.txt").write_text("a b c")


def speechbrains(run: Path, step: int) -> None:
    folder = run / f"CKPT+2026-01-0{step}+00-00-00+00"
    folder.mkdir()
    (folder / "CKPT.yaml").write_text("end-of-epoch: true\n")
    (folder / "counter.ckpt").write_text(str(step))
    torch.save(state_of(step), folder / "model.ckpt")
    torch.save(state_of(step + 9), folder / "encoder.ckpt")


def stable_baselines(run: Path, step: int) -> None:
    with zipfile.ZipFile(run / f"model_{step}_steps.zip", "w") as file:
        policy = io.BytesIO()
        torch.save(state_of(step), policy)
        file.writestr("policy.pth", policy.getvalue())
        file.writestr("data", f'{{"num_timesteps": {step}}}')
        file.writestr("_stable_baselines3_version", "2.0")


def modules(run: Path, step: int) -> None:
    model = nn.Linear(3, 2)
    nn.init.constant_(model.weight, step)
    torch.save(model, run / f"step_{step}.pt")


@pytest.mark.parametrize("small", [0, 1 << 30], ids=["copied when opened", "copied at once"])
@pytest.mark.parametrize(
    ("save", "name"),
    [
        (state_dicts, "average.pth.tar"),
        (lightnings, "average.ckpt"),
        (sharded, "average"),
        (flaxs, "average.msgpack"),
        (bins, "average"),
        (speechbrains, "CKPT+average"),
        (stable_baselines, "average.safetensors"),
        (modules, "average.safetensors"),
    ],
)
def test_as_out_of_a_folder(tmp_path, capsys, monkeypatch, save, name, small):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(remote, "_SMALL", small)
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    run = tmp_path / "run"
    run.mkdir()
    for step in (1, 2, 3):
        save(run, step)
    for file in (path for path in run.rglob("*") if path.is_file()):
        memory.pipe_file(f"/bucket/run/{file.relative_to(run).as_posix()}", file.read_bytes())
    here = command(capsys, "average", run, "--lawa=window=2", f"--out={tmp_path / 'here' / name}")
    there = command(capsys, "average", "memory://bucket/run", "--lawa=window=2", f"--out=memory://bucket/out/{name}")
    assert "lawa window=2 as of" in here
    lines = here.replace(str(tmp_path / "here"), "memory://bucket/out").replace(str(run), "memory://bucket/run")
    assert there.splitlines()[1:-1] == lines.splitlines()
    found = {file: hashlib.sha256(memory.cat_file(file)).digest() for file in memory.find("/bucket/out")}
    written = [path for path in (tmp_path / "here").rglob("*") if path.is_file()]
    expected = {
        f"/bucket/out/{path.relative_to(tmp_path / 'here').as_posix()}": hashlib.sha256(path.read_bytes()).digest()
        for path in written
    }
    assert found.keys() == expected.keys()
    unlike = [Path(file).name for file in found if found[file] != expected[file]]
    assert unlike == ([".metadata"] if ".metadata" in unlike else [])  # which has an identity of its own
    assert not list((tmp_path / "temporary").iterdir())
    memory.store.clear()
