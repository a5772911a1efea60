"""Reading snapshots from every kind of file, and refusing what cannot be read."""

import math
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.support.warm_python import python
from weight_averaging.averages import SnapshotError
from weight_averaging.offline.reading.snapshots import Snapshots
from weight_averaging.offline.safetensors_files import SafetensorsFile, SafetensorsWriter
from weight_averaging.torch import EMA, recompute_batch_norm


def model_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    model(torch.randn(8, 3))  # batch-norm statistics
    return model


def state_of(seed: int) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model_of(seed).state_dict().items()}


def assert_holds(folder, steps=(100, 200)):
    snapshots = Snapshots(folder)
    assert snapshots.steps == list(steps)
    for step, state in snapshots.stream(steps):
        expected = state_of(step)
        assert state.keys() == expected.keys() == snapshots.layout.keys()
        for name in state:
            assert state[name].dtype == expected[name].dtype
            assert torch.equal(state[name], expected[name]), name
    assert snapshots.nbytes == sum(tensor.nbytes for tensor in state_of(100).values())


def test_state_dicts_and_checkpoints_of_torch(tmp_path):
    for name, wrap in {
        "plain": lambda state, step: state,
        "nested": lambda state, step: {"model_state_dict": state, "epoch": 3},
        "official": lambda state, step: {"model_params": state, "optimizer_state": {}, "global_step": step},
        "compiled": lambda state, step: {"model": {f"module._orig_mod.{n}": t for n, t in state.items()}},
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        for step in (200, 100):
            file = f"checkpoint_{step}" if name == "official" else f"epoch7_step_{step}.pt"
            torch.save(wrap(state_of(step), step), folder / file)
        (folder / ".partial_checkpoint_300").write_bytes(b"half")
        (folder / "notes.txt").write_text("not a snapshot")
        assert_holds(folder)


def test_the_format_before_torch_1_6_and_steps_from_global_step(tmp_path):
    for name, step in (("a.pth", 100), ("b.pth", 200)):
        contents = {"state_dict": state_of(step), "global_step": step, "loss": np.float64(0.5)}
        torch.save(contents, tmp_path / name, _use_new_zipfile_serialization=name == "a.pth")
    assert_holds(tmp_path)


def test_safetensors_of_the_library(tmp_path):
    for step in (100, 200):
        save_file(state_of(step), tmp_path / f"model-{step:06d}.safetensors", {"made by": "hand"})
    assert_holds(tmp_path)


def test_the_writer_writes_what_the_library_reads(tmp_path):
    types = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8, torch.float8_e4m3fn]
    state = {f"t{i}": torch.randn(i, 3).to(dtype) for i, dtype in enumerate(types)}
    state["scalar"] = torch.tensor(3.5)
    state["transposed"] = torch.randn(4, 5).t()
    layout = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}
    path = tmp_path / "x.safetensors"
    with SafetensorsWriter(path, layout, {"step": "3"}) as writer:
        for name in reversed(list(state)):
            writer.write(name, state[name])
        assert not path.exists()
    assert SafetensorsFile(path).metadata == {"step": "3"}
    own = SafetensorsFile(path).read(list(state))
    for name, tensor in load_file(path).items():
        for read in (tensor, own[name]):
            assert read.dtype == state[name].dtype
            assert torch.equal(read.float(), state[name].float())


def test_a_file_is_not_in_place_before_it_is_whole(tmp_path):
    path = tmp_path / "x.safetensors"
    layout = {"a": ((2,), torch.float32), "b": ((1,), torch.float32)}
    with pytest.raises(ValueError, match=r"1 tensor not written, b"), SafetensorsWriter(path, layout) as writer:
        writer.write("a", torch.ones(2))
    with pytest.raises(KeyboardInterrupt), SafetensorsWriter(path, layout):
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="a is not to be written"), SafetensorsWriter(path, layout) as writer:
        writer.write("a", torch.ones(3))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_file_for_which_there_is_no_room_is_named(tmp_path, suffix):
    torch.save({"w": torch.ones(5000)}, tmp_path / "step_1.pt")
    code = (
        "import resource, sys; from scripts.average_checkpoints import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); main(sys.argv[1:])"
    )
    out = tmp_path / f"average.{suffix}"
    command = [python(), "-c", code, str(tmp_path), "--lawa=window=1", f"--out={out}"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert process.stderr == f"error: [Errno 27] File too large: '{out}'\n"
    assert [path.name for path in tmp_path.iterdir()] == ["step_1.pt"]


def test_folders_of_distributed_checkpoint(tmp_path):
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    for step in (100, 200):
        dcp.save({"model": state_of(step), "step": step}, checkpoint_id=tmp_path / "nested" / f"step_{step}")
        dcp.save(state_of(step), checkpoint_id=tmp_path / "plain" / f"step_{step}")
    assert_holds(tmp_path / "nested")
    assert_holds(tmp_path / "plain")
    for shard in (tmp_path / "plain" / "step_200").glob("*.distcp"):
        shard.write_bytes(shard.read_bytes()[:-2000])
    with pytest.raises(SnapshotError, match="step_200 is damaged or truncated: "):
        list(Snapshots(tmp_path / "plain").stream([200]))


@pytest.mark.parametrize("buffers", ["average", "latest", "recompute"])
def test_raw_weights_come_out_of_a_checkpoint_written_while_the_average_was_in(tmp_path, buffers):
    model = model_of(0)
    ema = EMA(model, decay=0.5, buffers=buffers)
    for step in (100, 200):
        model.load_state_dict(state_of(step))
        ema.update(step)
    passes = [lambda: model(torch.randn(8, 3))]
    with ema.averaged(lambda: recompute_batch_norm(model, passes)):
        assert not torch.equal(model[0].weight, state_of(200)["0.weight"])
        contents = {"model_params": model.state_dict(), "optimizer_state": {"averager": ema.state_dict()}}
        torch.save({**contents, "global_step": 200}, tmp_path / "checkpoint_200")
    assert_holds(tmp_path, [200])


def test_folders_of_distributed_checkpoint_written_by_python_3_13(tmp_path, monkeypatch):
    """Which has its paths in a module of another name."""
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pathlib._local", pathlib)
        patch.setattr(pathlib.PosixPath, "__module__", "pathlib._local")
        for step in (100, 200):
            dcp.save({"model": state_of(step)}, checkpoint_id=tmp_path / f"step_{step}")
    assert b"pathlib._local" in (tmp_path / "step_100" / ".metadata").read_bytes()
    assert_holds(tmp_path)


class Code:
    def __reduce__(self):
        return os.system, ("touch code_was_run",)


def test_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Code()}, tmp_path / "step_1.pt")
    with pytest.raises(SnapshotError, match=r"step_1\.pt is refused: unpickling it would call \w+\.system"):
        Snapshots(tmp_path)
    shutil.rmtree(tmp_path / "sharded", ignore_errors=True)
    (tmp_path / "step_1.pt").unlink()
    (tmp_path / "step_2").mkdir()
    import pickle

    (tmp_path / "step_2" / ".metadata").write_bytes(pickle.dumps(Code()))
    with pytest.raises(SnapshotError, match=r"step_2/\.metadata is refused: unpickling it would call \w+\.system"):
        Snapshots(tmp_path)
    # A dotted name, which would reach what an allowed module has imported.
    dotted = (
        b"\x80\x04\x8c\x25torch.distributed.checkpoint.metadata\x8c\x09os.system\x93\x8c\x13touch code_was_run_2\x85R."
    )
    (tmp_path / "step_2" / ".metadata").write_bytes(dotted)
    with pytest.raises(
        SnapshotError, match=r"unpickling it would call torch.distributed.checkpoint.metadata.os.system"
    ):
        Snapshots(tmp_path)
    assert not list(tmp_path.glob("code_was_run*"))


def test_bad_folders_say_which_file(tmp_path):
    def says(match):
        with pytest.raises(SnapshotError, match=match):
            Snapshots(tmp_path)
        for path in tmp_path.iterdir():
            path.unlink()

    says(r"holds no snapshot: \*\.pt, \*\.pth")
    with pytest.raises(SnapshotError, match="is not a folder"):
        Snapshots(tmp_path / "none")
    torch.save(state_of(1), tmp_path / "last.pt")
    says(r"holds no snapshot but what is left out, as last\.pt is \('last' in its name\): name the files")
    torch.save(state_of(1), tmp_path / "final.pt")
    says(r"final\.pt: its step is not known; put it into the name, as in step_1000\.pt")
    for name in ("a_1.pt", "b_1.pt"):
        torch.save(state_of(1), tmp_path / name)
    says(r"a_1\.pt and .*b_1\.pt are both of step 1")
    torch.save(state_of(1), tmp_path / "a_1.pt")
    (tmp_path / "a_1.pt").write_bytes((tmp_path / "a_1.pt").read_bytes()[:-1000])
    says(r"a_1\.pt is damaged or truncated")
    save_file(state_of(1), tmp_path / "a_1.safetensors")
    (tmp_path / "a_1.safetensors").write_bytes((tmp_path / "a_1.safetensors").read_bytes()[:-10])
    says(r"a_1\.safetensors is truncated: \d+ bytes")
    (tmp_path / "a_1.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{]      ")
    says(r"a_1\.safetensors is damaged: its header")
    (tmp_path / "a_1.safetensors").write_bytes(b"abc")
    says(r"a_1\.safetensors is not a safetensors file, or is truncated: 3 bytes")
    save_file(state_of(1), tmp_path / "model-00001-of-00002.safetensors")
    says("is one of several parts of a model")
    torch.save({"lr": 0.1, "epoch": 3}, tmp_path / "a_1.pt")
    says(r"a_1\.pt holds no state dict; its keys are lr, epoch$")
    torch.save({"mine": state_of(1), "epoch": 3}, tmp_path / "a_1.pt")
    says(r"its keys are mine, epoch; name the model by --key=mine$")
    torch.save([1], tmp_path / "a_1.pt")
    says(r"a_1\.pt holds no state dict but a list")
    torch.save(state_of(1), tmp_path / "a_1.pt")
    torch.save({**state_of(2), "0.bias": torch.ones(4)}, tmp_path / "a_2.pt")
    says(r"a_2\.pt does not fit .*a_1\.pt: 0\.bias is float32 \[4\], not float32 \[5\]")


def test_an_empty_list_and_a_file_that_changed_are_told(tmp_path):
    with pytest.raises(SnapshotError, match="no checkpoint is named"):
        Snapshots([])
    path = tmp_path / "step_1.pt"
    torch.save(state_of(1), path)
    snapshots = Snapshots(tmp_path)
    torch.save({name: tensor for name, tensor in state_of(1).items() if name != "0.bias"}, path)
    with pytest.raises(SnapshotError, match=r"step_1\.pt has changed: 0\.bias is not in it any more"):
        snapshots.state(1)
    assert snapshots.state(1, ["0.weight"]).keys() == {"0.weight"}


def test_headers_that_lie_are_refused(tmp_path):
    for entry, match in [
        ('{"dtype":"F32","shape":[2],"data_offsets":[0,4]}', "do not fit its shape"),
        ('{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}', "are not of whole numbers"),
        ('{"dtype":"F32","shape":[1000],"data_offsets":[0,4000]}', "is truncated"),
        ('{"dtype":"F9","shape":[1],"data_offsets":[0,4]}', "of an unknown, 'F9'"),
        ('{"shape":[1],"data_offsets":[0,4]}', "without, or of an unknown, 'dtype'"),
        ("3", "its header cannot be read"),
    ]:
        text = f'{{"a":{entry}}}'.encode()
        path = tmp_path / "step_1.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
        with pytest.raises(SnapshotError, match=match):
            SafetensorsFile(path)


def test_unpadded_headers_are_read(tmp_path):
    text = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}} '
    text += b" " * ((3 - len(text)) % 4)
    path = tmp_path / "step_1.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + torch.tensor([math.pi]).numpy().tobytes())
    assert SafetensorsFile(path).read(["a"])["a"].item() == pytest.approx(math.pi)
