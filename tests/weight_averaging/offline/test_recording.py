"""Snapshots written during training."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.support.killing import grow_old, killed_at_every_change
from tests.weight_averaging.torch.models.test_unusual_tensors import Packed
from weight_averaging import torch as online
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


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6), st.integers(0, 2)), min_size=1, max_size=5))
def test_snapshots_of_a_course_that_was_left_are_left_out(sessions):
    """A run goes back and on again, with the same weights or others; each session: from where, how far, what it has."""
    with tempfile.TemporaryDirectory() as folder:
        known: dict[int, int] = {}  # step -> what the weights were
        model = nn.Linear(1, 1, bias=False)
        for back, length, course in sessions:
            first = max(known, default=0) - back + 1 if known else 1
            with SnapshotWriter(folder, interval=1) as writer:
                for step in range(max(1, first), max(1, first) + length):
                    if known.get(step, course) != course:
                        known = {other: value for other, value in known.items() if other < step}
                    known[step] = course
                    nn.init.constant_(model.weight, 10 * step + course)
                    writer.update(step, model)
        read = Snapshots(folder)
        assert {step: state["weight"].item() for step, state in read.stream(read.steps)} == {
            step: 10 * step + value for step, value in known.items()
        }
        assert all("took another course at step" in reason for reason in read.left_out.values())
        verify(Path(folder))


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
    there = sorted(path.name for path in tmp_path.iterdir())
    assert there == [".lock", module.MANIFEST, "step_00000001.safetensors"]
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
    (tmp_path / ".partial_step_00000009.safetensors~here~1~01234567").touch()  # as another kill would leave
    folder = Snapshots(tmp_path)
    assert len(folder.steps) >= 5
    assert sum(1 for _ in folder.stream(folder.steps)) == len(folder.steps)
    verify(tmp_path)
    model = nn.Linear(1000, 1000)
    with SnapshotWriter(tmp_path, interval=1) as writer:
        writer.update(folder.steps[-1] + 1, model)
    assert not list(tmp_path.glob(".partial_*"))


def test_what_a_killed_prune_has_left_the_next_one_deletes(tmp_path):
    home = tmp_path / "snapshots"
    with SnapshotWriter(home, interval=1) as writer:
        train(nn.Linear(2, 2), writer, range(1, 5))
    for change in killed_at_every_change(home, prune, home, {2, 4}):
        verify(home)
        young = home / "step_00000009.safetensors"
        grow_old(home)
        young.touch()  # of a writer that names it in a moment
        prune(home, {2, 4})
        there = [path.name for path in sorted(home.iterdir()) if path.name.startswith("step")]
        assert there == [*(f"step_0000000{step}.safetensors" for step in (2, 4)), young.name], change


def test_a_closed_writer_takes_no_more(tmp_path):
    model = nn.Linear(2, 2)
    with SnapshotWriter(tmp_path, interval=1) as writer:
        train(model, writer, range(1, 3))
    for step in (3, 4, 5):
        with pytest.raises(SnapshotError, match=rf"update\({step}\) of a SnapshotWriter that is closed"):
            writer.update(step, model)
    writer.flush()
    writer.close()
    assert Snapshots(tmp_path).steps == [1, 2]


def test_two_writers_of_one_process_do_not_share_a_folder(tmp_path):
    model = nn.Linear(2, 2)
    first, second = SnapshotWriter(tmp_path, interval=1), SnapshotWriter(tmp_path, interval=1)
    first.update(1, model)
    with pytest.raises(SnapshotError, match="another SnapshotWriter is writing into"):
        second.update(1, model)
    first.close()
    second.update(2, model)
    first.close()  # as at the end of a `with` in which it was closed: the folder is the second's now
    with pytest.raises(SnapshotError, match="another SnapshotWriter is writing into"):
        SnapshotWriter(tmp_path, interval=1).update(3, model)
    second.close()
    assert Snapshots(tmp_path).steps == [1, 2]
    verify(tmp_path)


OTHER = """
import sys, torch
from weight_averaging.averages import SnapshotError
from weight_averaging.offline.recording import SnapshotWriter
writer = SnapshotWriter(sys.argv[1], interval=1)
try:
    writer.update(2, torch.nn.Linear(2, 2))
    writer.close()
    print("written")
except SnapshotError as error:
    print(error)
"""


def test_two_processes_do_not_share_a_folder(tmp_path):
    def other():
        run = subprocess.run([sys.executable, "-c", OTHER, str(tmp_path)], capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr
        return run.stdout.strip()

    with SnapshotWriter(tmp_path, interval=1) as writer:
        writer.update(1, nn.Linear(2, 2))
        assert "another SnapshotWriter is writing into" in other()
    assert other() == "written"
    assert Snapshots(tmp_path).steps == [1, 2]


@pytest.mark.parametrize("kind", ["LAWA", "EMA"])
def test_an_average_is_not_recorded_as_raw_weights(tmp_path, kind):
    model = nn.Linear(1, 1, bias=False)
    averager = online.LAWA(model, interval=1, window=1) if kind == "LAWA" else online.EMA(model, decay=0.5)
    averager.update(1)
    with SnapshotWriter(tmp_path, interval=1) as writer:
        with averager.averaged(), pytest.raises(RuntimeError, match=rf"update\(1\) while the average of {kind} is in"):
            writer.update(1, nn.DataParallel(model))
        assert writer.update(1, nn.Linear(1, 1)), "that of another model is no matter"
        assert writer.update(2, model)


@pytest.mark.parametrize("value", [torch.zeros(2), {1, 2}, float("nan"), {"nested": Path("x")}, {("a", 1): 2}], ids=str)
def test_metadata_that_json_cannot_hold_is_told_at_once(tmp_path, value):
    with pytest.raises(SnapshotError, match="metadata: JSON cannot hold bad="):
        SnapshotWriter(tmp_path, interval=1, metadata={"fine": 1, "bad": value})


def test_metadata_comes_back_as_json_has_it(tmp_path):
    for _ in range(2):  # and a run that goes on has the same
        with SnapshotWriter(tmp_path, interval=1, metadata={"sizes": (1, 2), "by": {3: "three"}}) as writer:
            writer.update(1, nn.Linear(2, 2))
    assert read_manifest(tmp_path)["metadata"] == {"sizes": [1, 2], "by": {"3": "three"}}


def test_a_model_whose_own_names_are_like_a_wrappers_keeps_them(tmp_path):
    model = nn.Module()
    model.module = nn.Linear(2, 2)
    with SnapshotWriter(tmp_path, interval=1) as writer:
        writer.update(1, model)
    assert list(Snapshots(tmp_path).layout) == ["module.weight", "module.bias"]


def test_snapshots_may_be_pruned_while_they_are_written(tmp_path):
    model = nn.Linear(2, 2)
    with SnapshotWriter(tmp_path, interval=1) as writer:
        train(model, writer, range(1, 5))
        writer.flush()
        Snapshots(tmp_path).open(1).path.unlink()  # by hand, before
        prune(tmp_path, [3, 4])
        train(model, writer, range(5, 7))
    assert Snapshots(tmp_path).steps == [3, 4, 5, 6]
    verify(tmp_path)


def test_what_cannot_be_written_whole_is_one_line(tmp_path):
    model = nn.Linear(2, 2)
    model.base = nn.Parameter(Packed(torch.ones(2, 2)), requires_grad=False)
    with SnapshotWriter(tmp_path, interval=1) as writer:
        with pytest.raises(SnapshotError, match="cannot write base, a Packed"):
            writer.update(1, model)
        placeholder = nn.Linear(2, 2)
        placeholder.weight.ds_id = 0
        with pytest.raises(ValueError, match="placeholder of DeepSpeed's ZeRO-3"):
            writer.update(1, placeholder)
