"""Files that are anything, case by case: what they hold, how they are called, how long they take."""

import io
import os
import signal
import subprocess
import sys
import time
import zipfile
from itertools import pairwise

import pytest
import torch

from tests.support.forms import command
from tests.weight_averaging.offline.test_hostile_files import RAN, within
from weight_averaging.offline import LAWA, Plan, Tail
from weight_averaging.offline.extract import extract
from weight_averaging.offline.forms.torch_file import TorchSource
from weight_averaging.torch import EMA


def test_nested_and_circular_contents(tmp_path, capsys):
    wide: list = []
    for _ in range(6):
        wide = [wide] * 40
    circle: list = []
    circle.append(circle)
    ring: dict = {"w": 1}
    ring["ring"] = ring
    for number, extra in enumerate((wide, circle, ring)):
        folder = tmp_path / str(number)
        folder.mkdir()
        for step in (1, 2):
            torch.save({"model": {"w": torch.ones(2) * step}, "extra": extra}, folder / f"step_{step}.pt")
        with within(20):
            command(capsys, "average", folder, "--lawa=window=2", f"--out={folder / 'average.pt'}")
        found = torch.load(folder / "average.pt")
        assert found["model"]["w"].tolist() == [1.5, 1.5]
        if extra is not wide:
            inner = found["extra"]
            assert (inner[0] if isinstance(inner, list) else inner["ring"]) is inner


def test_what_is_nested_too_deeply_to_be_written_is_one_line(tmp_path, capsys, monkeypatch):
    """Where that is, depends on the version of Python."""

    def too_deep(*_: object) -> None:
        raise RecursionError

    torch.save({"model": {"w": torch.ones(2)}}, tmp_path / "step_1.pt")
    monkeypatch.setattr(torch, "save", too_deep)
    out = tmp_path / "average.pt"
    said = command(capsys, "average", tmp_path, "--lawa=window=1", f"--out={out}")
    assert said == f"error: {out}: what the checkpoints hold is nested too deeply\n"
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a_1.pt", b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file, as Keras and TensorFlow write them"),
        ("a_1.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS"),
        ("a_1.pt", {"config.json": b"", "metadata.json": b"", "model.weights.h5": b""}, "a model of Keras"),
        ("a_1.pt", {"a/data.pkl": b"", "a/constants.pkl": b"", "a/code/x.py": b""}, "TorchScript"),
        ("a_1.pt", {"w.npy": b"", "v.npy": b""}, "an .npz file of NumPy"),
        ("a_1.pt", b"\x02" + bytes(7) + b"{}", "a safetensors file by another name"),
    ],
)
def test_what_is_known_and_not_read_is_called_by_its_name(tmp_path, capsys, name, data, says):
    if isinstance(data, dict):
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            for inner, value in data.items():
                file.writestr(inner, value)
    else:
        (tmp_path / name).write_bytes(data)
    said = command(capsys, "inspect", tmp_path)
    assert said.startswith(f"error: {tmp_path / name} is {says}")
    assert "which is not read: save the model's state_dict() by torch.save, or as .safetensors" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "data", [bytes(8) + b"{}", b"\x01" + bytes(7) + b"{", b"\x02" + bytes(7) + b"{]", b"\x09" + bytes(7) + b'{"a": 1}']
)
def test_only_what_has_a_whole_header_is_called_safetensors(tmp_path, capsys, data):
    """The length of a header, which is not 0 nor beyond the file, and that header, JSON."""
    (tmp_path / "a_1.pt").write_bytes(data)
    said = command(capsys, "inspect", tmp_path)
    assert said.startswith("error: ")
    assert "safetensors file" not in said
    assert said.count("\n") == 1


class Plain:
    """A class that a user allows, with a method that a file may name and not have called."""

    def ran(self) -> None:
        os.mkdir(RAN)

    def __reduce__(self):
        return getattr, (Plain, self.wanted)


@pytest.mark.parametrize("wanted", ["ran", "__init__", "__subclasses__", "missing"])
def test_methods_of_an_allowed_class_are_kept_and_nothing_else(tmp_path, capsys, wanted):
    inner = Plain()
    inner.wanted = wanted
    torch.save({"model": {"w": torch.ones(2)}, "x": inner}, tmp_path / "step_1.pt")
    allow = ["--allow-class", f"{Plain.__module__}.Plain"]
    assert "is refused" in command(capsys, "inspect", tmp_path)
    said = command(capsys, "inspect", tmp_path, *allow)
    assert ("checkpoints: 1" in said) == (wanted == "ran")
    assert said.count("\n") == 1 or wanted == "ran"


def test_arrays_and_numbers_of_numpy_are_no_code(tmp_path, capsys):
    """Under the names of numpy 1 and 2; of no more elements than the file brings along."""
    numpy = pytest.importorskip("numpy")
    values = [numpy.arange(6.0).reshape(2, 3), numpy.float32(3), numpy.random.get_state(), numpy.array(["a", None])]
    for step in (1, 2):
        contents = {"model": {"w": torch.ones(2) * step}, "values": values}
        for name, module in (("new", b"numpy._core.multiarray"), ("old", b"numpy.core.multiarray")):
            (tmp_path / name).mkdir(exist_ok=True)
            file = io.BytesIO()
            torch.save(contents, file, _use_new_zipfile_serialization=False)
            data = file.getvalue().replace(b"numpy._core.multiarray", module)
            (tmp_path / name / f"step_{step}.pt").write_bytes(data)
    for name in ("new", "old"):
        command(capsys, "average", tmp_path / name, "--lawa=window=2", f"--out={tmp_path / name / 'average.pt'}")
        found = torch.load(tmp_path / name / "average.pt", weights_only=False)
        assert found["model"]["w"].tolist() == [1.5, 1.5]
        numpy.testing.assert_array_equal(found["values"][0], values[0])
        numpy.testing.assert_array_equal(found["values"][2][1], values[2][1])
        assert found["values"][1] == 3
        assert found["values"][3].tolist() == ["a", None]


def test_a_script_of_torch_is_called_by_its_name(tmp_path, capsys):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "a_1.pt"))
    assert "a_1.pt is TorchScript, which is not read" in command(capsys, "inspect", tmp_path)


def test_names_that_are_no_text(tmp_path, capsys):
    for name in (b"step_1\xff.pt", b"step_2\n.pt"):
        torch.save({"w": torch.ones(2)}, tmp_path / "x")
        os.rename(tmp_path / "x", os.path.join(os.fsencode(tmp_path), name))
    said = command(capsys, "inspect", tmp_path)
    assert (
        said == f"error: {tmp_path}/step_1\\udcff.pt: its name is no UTF-8, and torch opens no such file: rename it\n"
    )
    os.unlink(os.path.join(os.fsencode(tmp_path), b"step_1\xff.pt"))
    assert "checkpoints: 1, step 2" in command(capsys, "inspect", tmp_path)
    said = command(capsys, "average", tmp_path, "--lawa=window=1", f"--out={tmp_path}/a\udcff.pt")
    assert said == f"error: --out={tmp_path}/a\\udcff.pt: torch writes names in UTF-8 alone: give another\n"


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_sigterm_leaves_nothing(tmp_path, suffix):
    (tmp_path / "run").mkdir()
    for step in (1, 2):
        torch.save({"w": torch.ones(100)}, tmp_path / "run" / f"step_{step}.pt")
    code = (
        "import sys, time; from weight_averaging import cli; from weight_averaging.offline.passes import plan\n"
        "run = plan.Plan.run_parts\n"
        "def slow(*args):\n    print('writing', flush=True); time.sleep(60); yield from run(*args)\n"
        "plan.Plan.run_parts = slow; cli.main(sys.argv[1:])"
    )
    out = tmp_path / f"x.{suffix}"
    arguments = ["average", str(tmp_path / "run"), "--lawa=window=2", f"--out={out}"]
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=-1, stderr=-1, text=True) as process:
        for line in process.stdout or ():
            if line.startswith("writing"):
                break
        process.send_signal(signal.SIGTERM)
        said = process.communicate()[1]
    assert process.returncode == 143
    assert said == "\nstopped: nothing was written, and the same command starts anew\n"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# Time that grows no faster than what is read


def seconds_of(work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def grows_at_most(work, sizes, factor) -> None:
    """From one size to the next, each twice the one before; a quadratic one has the factor 4."""
    best = [min(seconds_of(lambda size=size: work(size)) for _ in range(3)) for size in sizes]
    assert all(after / one < factor for one, after in pairwise(best)), best


def test_a_plan_of_many_tails():
    def work(count):
        steps = range(1, count + 1)
        Plan([(Tail(share=0.5), step) for step in steps], steps)

    grows_at_most(work, (250, 500, 1000), 6)  # members are quadratic as such; it was cubic


def test_extraction_and_raw_weights_of_many_tensors(tmp_path):
    def state(count):
        model = torch.nn.Module()
        for number in range(count):
            model.register_parameter(f"w{number}", torch.nn.Parameter(torch.ones(1)))
        ema = EMA(model, decay=0.5)
        ema.update(1)
        with ema.averaged():
            torch.save({"model": model.state_dict(), "averager": ema.state_dict()}, tmp_path / f"{count}.pt")

    sizes = (1000, 2000, 4000)
    for size in sizes:
        state(size)
    grows_at_most(lambda size: extract(tmp_path / f"{size}.pt"), sizes, 3)
    grows_at_most(lambda size: TorchSource(tmp_path / f"{size}.pt"), sizes, 3)


def test_the_mean_of_many_windows_is_planned_at_once():
    plan = Plan([(LAWA(window=3), step) for step in range(3, 2001)], range(1, 2001))
    assert plan.peak == 3
