"""Snapshots written during training."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from weight_averaging.averages import SnapshotError
from weight_averaging.offline import LAWA, Plan
from weight_averaging.offline import recording as module
from weight_averaging.offline.reading.snapshots import Snapshots
from weight_averaging.offline.recording import SnapshotWriter, prune, read_manifest, verify


def train(model: nn.Module, writer: SnapshotWriter, steps: range) -> dict[int, dict[str, torch.Tensor]]:
    states = {}
    for step in steps:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(step + 1 / 3)  # in place, at once: a snapshot that aliases the weights is found out
        if writer.update(step, model):
            states[step] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return states


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_snapshots_are_the_weights_of_their_steps(tmp_path, dtype):
    model = nn.Sequential(nn.Linear(300, 200), nn.BatchNorm1d(200))
    with SnapshotWriter(tmp_path, interval=3, dtype=dtype, metadata={"seed": 1}) as writer:
        told = writer.disk_use(model, 20)
        states = train(model, writer, range(1, 21))
    folder = Snapshots(tmp_path)
    assert folder.steps == list(states) == [3, 6, 9, 12, 15, 18]
    for step, state in folder.stream(folder.steps):
        for name, tensor in state.items():
            assert torch.equal(tensor, states[step][name].to(tensor.dtype))
            assert tensor.dtype == (torch.int64 if "num_batches" in name else dtype or torch.float32)
    assert told == 6 * folder.nbytes
    on_disk = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert told <= on_disk <= told + 6 * 2000
    manifest = read_manifest(tmp_path)
    assert manifest["metadata"] == {"seed": 1}
    assert [entry["step"] for entry in manifest["snapshots"]] == folder.steps
    verify(tmp_path)


def test_only_what_a_grid_needs_is_kept(tmp_path):
    model = nn.Linear(2, 2)
    plan = Plan([(LAWA(window=3, interval=4), at) for at in (12, 24)], range(2, 25, 2))
    with SnapshotWriter(tmp_path / "a", interval=2, keep=set(plan.needed).__contains__) as writer:
        train(model, writer, range(1, 25))
    assert Snapshots(tmp_path / "a").steps == plan.needed == [4, 8, 12, 16, 20, 24]
    with SnapshotWriter(tmp_path / "b", interval=2) as writer:
        train(model, writer, range(1, 25))
    before = sum(path.stat().st_size for path in (tmp_path / "b").glob("*.safetensors"))
    assert prune(tmp_path / "b", plan.needed) == before // 2
    assert Snapshots(tmp_path / "b").steps == plan.needed
    verify(tmp_path / "b")
    with pytest.raises(SnapshotError, match="has no snapshot of step 5, which is to be kept"):
        prune(tmp_path / "b", [4, 5])
    assert Snapshots(tmp_path / "b").steps == plan.needed


def test_going_on_writes_the_same_and_other_settings_are_refused(tmp_path):
    model = nn.Linear(2, 2)
    with SnapshotWriter(tmp_path, interval=2, metadata={"seed": 1}) as writer:
        train(model, writer, range(1, 9))
    manifest = read_manifest(tmp_path)
    with SnapshotWriter(tmp_path, interval=2, metadata={"seed": 1}) as writer:
        train(model, writer, range(5, 9))
    assert read_manifest(tmp_path) == manifest
    for arguments, says in [
        ({"interval": 3, "metadata": {"seed": 1}}, "interval=2, not 3"),
        ({"interval": 2, "metadata": {"seed": 2}}, "metadata={'seed': 1}, not {'seed': 2}"),
        ({"interval": 2, "metadata": {"seed": 1}, "dtype": torch.bfloat16}, "dtype=None, not 'torch.bfloat16'"),
    ]:
        with pytest.raises(SnapshotError, match=says):
            SnapshotWriter(tmp_path, **arguments)


def test_a_disk_that_fails_is_told_to_training(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "SafetensorsWriter", fail)
    writer = SnapshotWriter(tmp_path, interval=1)
    writer.update(1, nn.Linear(2, 2))
    with pytest.raises(SnapshotError, match=r"a snapshot could not be written: .*No space left"):
        writer.flush()
    with pytest.raises(SnapshotError, match="No space left"):
        writer.update(2, nn.Linear(2, 2))
    with pytest.raises(SnapshotError, match="No space left"):
        writer.close()
    assert not writer._thread.is_alive()


def test_changed_files_are_found(tmp_path):
    with SnapshotWriter(tmp_path, interval=1) as writer:
        train(nn.Linear(2, 2), writer, range(1, 4))
    path = tmp_path / "step_00000002.safetensors"
    contents = bytearray(path.read_bytes())
    contents[-1] ^= 1
    path.write_bytes(contents)
    with pytest.raises(SnapshotError, match=r"step_00000002.* checksum differs"):
        verify(tmp_path)
    path.unlink()
    manifest = (tmp_path / module.MANIFEST).read_bytes()
    with pytest.raises(SnapshotError, match="is in the manifest and not there"):
        verify(tmp_path)
    (tmp_path / module.MANIFEST).write_text("{")
    with pytest.raises(SnapshotError, match=r"manifest\.json is damaged"):
        verify(tmp_path)
    (tmp_path / module.MANIFEST).write_text(json.dumps({"format": 2}))
    with pytest.raises(SnapshotError, match="has format 2"):
        verify(tmp_path)
    (tmp_path / module.MANIFEST).write_bytes(manifest.replace(b'"step": 2', b'"step": 6'))
    with pytest.raises(SnapshotError, match=r"manifest\.json is damaged: it has 'step_00000002.*' for step 6"):
        verify(tmp_path)
    (tmp_path / module.MANIFEST).write_bytes(manifest.replace(b"step", b"ste\xf0", 1))
    with pytest.raises(SnapshotError, match=r"manifest\.json is damaged: 'utf-8' codec"):
        verify(tmp_path)


def test_a_full_disk_leaves_the_folder_as_it_was(tmp_path):
    """The limit on a file's size stands for the disk: writing fails in the same place, with another error number.

    The script ends without `close`: the thread must not keep it.
    """
    code = (
        "import resource, sys, torch; from weight_averaging.offline.recording import SnapshotWriter\n"
        "writer = SnapshotWriter(sys.argv[1], interval=1)\n"
        "writer.update(1, torch.nn.Linear(2, 2)); writer.flush()\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        "writer.update(2, torch.nn.Linear(100, 100)); writer.flush()"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=120)
    assert "a snapshot could not be written: [Errno 27] File too large" in process.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [module.MANIFEST, "step_00000001.safetensors"]
    verify(tmp_path)


def test_a_kill_leaves_a_readable_folder(tmp_path):
    code = (
        "import sys, torch; from weight_averaging.offline.recording import SnapshotWriter\n"
        "model = torch.nn.Linear(1000, 1000); writer = SnapshotWriter(sys.argv[1], interval=1)\n"
        "for step in range(1, 100000): writer.update(step, model)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    while process.poll() is None and len(list(tmp_path.glob("step_*"))) < 5:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    folder = Snapshots(tmp_path)
    assert len(folder.steps) >= 5
    assert sum(1 for _ in folder.stream(folder.steps)) == len(folder.steps)
    verify(tmp_path)
