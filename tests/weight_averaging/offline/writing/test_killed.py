"""The command `weight-averaging`, killed at every change that it makes: what is in place is whole, before or after."""

import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch

from tests.support.killing import die, grow_old, in_a_process, killed_at_every_change
from weight_averaging import atomic_file
from weight_averaging.cli import main

pytest.importorskip("safetensors")
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file


def state(number: int) -> dict[str, torch.Tensor]:
    return {"w": torch.full((40, 5), float(number)), "b": torch.arange(7.0) * number}


def hugging_face(folder: Path, number: int) -> Path:
    folder.mkdir()
    save_file(state(number), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return folder


def distributed(folder: Path, number: int) -> Path:
    dcp.save(state(number), checkpoint_id=folder)  # one process, which older releases say by a warning
    return folder


def torch_file(path: Path, number: int) -> Path:
    path = path.with_suffix(".pt")
    torch.save(state(number), path)
    return path


def contents(home: Path) -> dict[str, bytes]:
    """Of every file but what is half done."""
    files = (path for path in sorted(home.rglob("*")) if path.is_file())
    names = {path.relative_to(home): path for path in files}
    return {str(name): of(path) for name, path in names.items() if ".partial_" not in str(name)}


def of(path: Path) -> bytes:
    """A file; of torch.distributed.checkpoint's `.metadata` not the number that it draws for itself, nor its place."""
    if path.name != ".metadata":
        return path.read_bytes()
    metadata = dcp.FileSystemReader(path.parent).read_metadata()
    return repr((metadata.state_dict_metadata, metadata.storage_data)).encode()


@pytest.mark.parametrize("kind", [hugging_face, distributed, torch_file])
@pytest.mark.parametrize("several", [False, True])
def test_killed_at_every_change(tmp_path, kind, several):
    home = tmp_path / "home"
    home.mkdir()
    inputs = [kind(tmp_path / f"step_{number}", number) for number in (1, 2, 4)]
    out = home / f"average{inputs[0].suffix}"
    words = ["average", *map(str, inputs), "--lawa=window=3", f"--out={out}", "--overwrite"]
    if several:
        words = [*words[:4], "--lawa=window=2:3", f"--out={home / 'many'}", "--overwrite"]
    else:
        kind(home / "average", 7)  # is written over
    before = contents(home)
    shutil.copytree(home, tmp_path / "copy")
    main(words)
    after = contents(home)
    assert before != after
    shutil.rmtree(home)
    shutil.copytree(tmp_path / "copy", home)
    for change in killed_at_every_change(home, main, words):
        left = contents(home)
        if several:  # each whole, or not there
            assert all(after[name] == data for name, data in left.items()), change
        else:
            assert left in (before, after), change
        grow_old(home)
        main(words)
        assert contents(home) == after, change
        assert not list(home.rglob(".partial_*")), change  # nothing half done stays


def test_a_folder_is_never_lost_where_names_cannot_change_places(tmp_path, monkeypatch):
    """Killed between two renames, what was there is kept beside its place until something is there again."""
    monkeypatch.setattr(atomic_file, "_exchanged", lambda one, other: False)
    path = tmp_path / "average"
    hugging_face(path, 1)
    rename, renamed = os.replace, []

    def put() -> None:
        partial = atomic_file.partial_beside(path)
        hugging_face(partial, 2)
        monkeypatch.setattr(os, "replace", lambda *names: die() if renamed else (rename(*names), renamed.append(1)))
        atomic_file.put_in_place(partial, path)

    process = in_a_process(put)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not path.exists()
    grow_old(tmp_path)
    atomic_file.partial_beside(path)
    (kept,) = tmp_path.iterdir()  # what was half done is gone
    assert kept.name.startswith(".replaced_average~")
    hugging_face(tmp_path / "expected", 1)
    assert contents(tmp_path)["expected/model.safetensors"] == (kept / "model.safetensors").read_bytes()
    hugging_face(path, 3)
    atomic_file.partial_beside(path)
    assert not kept.exists()
    assert path.exists()


def test_somebody_who_reads_meanwhile_always_finds_a_folder(tmp_path):
    path, gone = hugging_face(tmp_path / "average", 1), []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            if not path.exists():
                gone.append(1)

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(30):
        partial = atomic_file.partial_beside(path)
        hugging_face(partial, number)
        atomic_file.put_in_place(partial, path)
    stop.set()
    reader.join()
    assert not gone
