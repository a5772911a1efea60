"""Files that are anything: one line and the exit status 2, or a right answer. No traceback, no hang, no code run."""

import contextlib
import io
import json
import os
import pathlib
import pickle
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from itertools import pairwise

import pytest
import torch
import torch.distributed.checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.forms import command
from weight_averaging import cli
from weight_averaging.offline import LAWA, Plan, Tail
from weight_averaging.offline.extract import extract
from weight_averaging.offline.forms import flax_format
from weight_averaging.offline.forms.torch_file import TorchSource
from weight_averaging.torch import EMA

RAN = "code_was_run"


class Code:
    """What a pickle runs if it may."""

    def __init__(self, how: int) -> None:
        self.how = how

    def __reduce__(self):
        return [
            (os.mkdir, (RAN,)), (os.system, (f"mkdir {RAN}",)), (subprocess.Popen, (["mkdir", RAN],)),
            (eval, (f"__import__('os').mkdir('{RAN}')",)), (exec, (f"import os; os.mkdir('{RAN}')",)),
        ][self.how]  # fmt: skip


def state_while_swapped() -> tuple[dict, dict]:
    """A model's state with its average in it, and that of the averager."""
    model = torch.nn.Linear(2, 1)
    averager = EMA(model, decay=0.5)
    averager.update(1)
    averager.update(2)
    with averager.averaged():
        return {name: value.clone() for name, value in model.state_dict().items()}, averager.state_dict()


def sharded() -> dict[bytes, bytes]:
    """The files of a folder of torch.distributed.checkpoint."""
    with tempfile.TemporaryDirectory() as made, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.distributed.checkpoint.save({"model": {"w": torch.ones(2, 3)}, "step": 1}, checkpoint_id=made)
        return {os.fsencode(path.name): path.read_bytes() for path in pathlib.Path(made).iterdir()}


WEIGHTS, REAL = state_while_swapped()
SHARDED = sharded()

# What files are made of

numbers = st.one_of(
    st.integers(-3, 12),
    st.sampled_from([2**31, 2**63, 2**64 - 1, -(2**63), 10**40]),
    st.floats(),
    st.booleans(),
    st.none(),
)
words = st.one_of(
    st.sampled_from(
        [
            "model", "state_dict", "w", "v", "epoch", "global_step", "optimizer", "averager", "tracks", "names", "raw",
            "checksums", "callbacks", "arch", "optimizer_history", "current_model_state", "averaging_state", "ema",
            "a.b", "{path}", "{0}", "_extra_state", "lora_A", "lora_B", "module.w",
        ]
    ),
    st.text(max_size=4),
)  # fmt: skip
json_like = st.recursive(
    st.one_of(numbers, words), lambda one: st.one_of(st.lists(one, max_size=3), st.dictionaries(words, one, max_size=3))
)
tensors = st.sampled_from(
    [
        torch.ones(2), torch.ones(2, 3), torch.tensor(3), torch.empty(0), torch.ones(2, dtype=torch.bfloat16),
        torch.full((2,), torch.nan), torch.eye(2).to_sparse(), torch.ones(3, 2).t(), torch.ones(1).expand(4),
        torch.ones(2, dtype=torch.complex64), torch.ones(2, dtype=torch.bool), torch.ones(2, device="meta"),
    ]
)  # fmt: skip
keys = st.one_of(words, st.integers(-1, 2), st.none(), st.tuples(st.integers(0, 1)))
pickled = st.recursive(
    st.one_of(numbers, words, tensors, st.builds(Code, st.integers(0, 4))),
    lambda one: st.one_of(
        st.lists(one, max_size=3), st.dictionaries(keys, one, max_size=4), st.tuples(one, one),
        st.fixed_dictionaries({"averager": one, "tracks": one, "names": one, "raw": one}),
        st.builds(lambda key, value: {"model": WEIGHTS, "x": {**REAL, key: value}}, st.sampled_from(sorted(REAL)), one),
        st.fixed_dictionaries({"model": st.just({"w": torch.ones(2)}), "extra": one, "global_step": one}),
    ),
    max_leaves=8,
)  # fmt: skip
fields = st.one_of(json_like, st.fixed_dictionaries({}, optional={
    "dtype": st.one_of(st.sampled_from(["F32", "BF16", "I8", "F8_E8M0"]), json_like),
    "shape": st.one_of(st.lists(st.integers(0, 3), max_size=2), json_like),
    "data_offsets": st.one_of(st.just([0, 8]), st.lists(numbers, min_size=2, max_size=2), json_like),
}))  # fmt: skip
good = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
headers = st.one_of(
    json_like,
    st.dictionaries(words, fields, max_size=3),
    st.builds(lambda key, value: {**good, "__metadata__": {key: value}}, words, st.one_of(words, json_like)),
    st.just(good),
)


def safetensors(header: object, length: int | None, data: int) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


def saved(contents: object, new: bool) -> bytes:
    file = io.BytesIO()
    try:
        torch.save(contents, file, _use_new_zipfile_serialization=new)
    except Exception:  # torch does not save everything: then a plain pickle
        with contextlib.suppress(Exception):
            return pickle.dumps(contents)
    return file.getvalue()


def plain_pickle(contents: object) -> bytes:
    with contextlib.suppress(Exception):  # of a tensor on no device, say
        return pickle.dumps(contents)
    return b""


def flaxs(contents: object) -> bytes:
    with contextlib.suppress(Exception):  # numbers beyond 64 bits, tensors that Flax does not have, no msgpack
        import msgpack

        return msgpack.packb(contents, default=flax_format.packed)
    return b"\x81\xa6params\x81\xa1w\xc7\x03\x01\x93\x91"


of_flax = st.recursive(
    st.one_of(numbers, words, tensors),
    lambda one: st.dictionaries(
        st.one_of(words, st.sampled_from(["model_params", "params", "model_state", "optimizer_state", "raw"])),
        one,
        max_size=4,
    ),
    max_leaves=6,
)
aside = st.fixed_dictionaries({"averaging": st.just(1), "raw": st.fixed_dictionaries(
    {"params": of_flax, "statistics": of_flax})})  # fmt: skip
whole_files = st.one_of(
    st.builds(flaxs, of_flax),
    st.builds(lambda raw: flaxs({"model_params": {"w": torch.ones(2)}, "optimizer_state": raw}), aside),
    st.builds(
        lambda rest: flaxs({"params": {"w": {"__msgpack_chunked_array__": True, **rest}}}),
        st.fixed_dictionaries({"shape": of_flax, "chunks": of_flax}),
    ),
    st.builds(
        safetensors, headers, st.one_of(st.none(), st.none(), st.integers(0, 2**64 - 1)), st.sampled_from([8, 0, 9])
    ),
    st.builds(saved, pickled, st.booleans()),
    st.builds(plain_pickle, pickled),
    st.binary(max_size=60),
    st.sampled_from(
        [b"\x89HDF\r\n\x1a\n", b"PK\x03\x04", b"\x93NUMPY", b"\x82\xa1a\x01\xa1b\x02", b"GGUF", b"{}", b""]
    ),
    st.just(saved({"model": {"w": torch.ones(2)}, "global_step": 3}, True)),
)


def changed(data: bytes, cut: int | None, flips: list[tuple[int, int]]) -> bytes:
    made = bytearray(data if cut is None else data[: max(len(data) - cut, 0)])
    for at, bit in flips:
        if made:
            made[at % len(made)] ^= 1 << bit
    return bytes(made)


damage = st.tuples(
    st.one_of(st.none(), st.integers(0, 400)), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 7)), max_size=2)
)
files = st.builds(lambda data, how: changed(data, *how), whole_files, st.one_of(st.just((None, [])), damage))
stems = st.one_of(
    st.sampled_from(["step_1", "step_2", "a_3", "last", "checkpoint_4", "epoch=1-x=2", "0", "model"]),
    st.binary(min_size=1, max_size=6).filter(lambda name: not set(name) & {0, 47} and name not in (b".", b"..")),
)
suffixes = st.sampled_from([".pt", ".safetensors", ".ckpt", ".bin", "", ".pth.tar", ".msgpack"])
names = st.builds(lambda stem, suffix: os.fsencode(stem) + os.fsencode(suffix), stems, suffixes)
in_folders = st.sampled_from(
    [
        b"model.safetensors", b"model.safetensors.index.json", b"pytorch_model.bin", b"config.json",
        b"trainer_state.json", b"adapter_model.safetensors", b"adapter_config.json", b"model_1.safetensors", b"x.pt",
        b".metadata", b"__0_0.distcp", b"sub/model.safetensors",
    ]
)  # fmt: skip
json_files = st.builds(lambda value: json.dumps(value).encode(), json_like)
folders = st.dictionaries(in_folders, st.one_of(files, json_files), min_size=1, max_size=4)
entries = st.one_of(names, st.sampled_from([b"checkpoint-1", b"step_5"]))
folders |= st.builds(
    lambda name, how: {**SHARDED, name: changed(SHARDED[name], *how)}, st.sampled_from(sorted(SHARDED)), damage
)
trees = st.dictionaries(entries, st.one_of(files, folders), max_size=3)
outputs = st.sampled_from([".pt", ".safetensors", "", ".ckpt", ".bin", ".msgpack"])


def put(folder: bytes, tree: dict) -> None:
    for name, inner in tree.items():
        path = os.path.join(folder, name)
        with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError):
            os.makedirs(path if isinstance(inner, dict) else os.path.dirname(path), exist_ok=True)
            if isinstance(inner, dict):
                put(path, inner)
            else:
                with open(path, "xb") as file:
                    file.write(inner)


def contents_of(folder: pathlib.Path) -> dict[bytes, bytes]:
    found = {}
    for place, _, own in os.walk(os.fsencode(folder)):
        for name in own:
            with open(os.path.join(place, name), "rb") as file:
                found[os.path.join(place, name)] = file.read()
    return found


@contextlib.contextmanager
def within(seconds: float):
    def late(*_: object) -> None:
        raise AssertionError(f"no end within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def said_by(arguments: list[str]) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            cli.main(arguments)
        except SystemExit as end:
            return int(end.code or 0), err.getvalue()
    return 0, err.getvalue()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(trees, outputs, st.sampled_from(["inspect", "average", "files", "merge", "extract"]))
def test_whatever_files_hold(tree, suffix, what):
    with tempfile.TemporaryDirectory() as made, contextlib.chdir(made):
        folder = pathlib.Path(made) / "run"
        folder.mkdir()
        put(os.fsencode(folder), tree)
        before = contents_of(folder)
        out = pathlib.Path(made) / f"out{suffix}"
        inside = [os.fsdecode(name) for name in sorted(os.listdir(os.fsencode(folder)))]
        inside = [os.path.join(folder, name) for name in inside]
        arguments = {
            "inspect": ["inspect", str(folder)],
            "average": ["average", str(folder), "--lawa=window=1", f"--out={out}"],
            "files": ["average", *inside, "--ema=decay=.5", f"--out={out}", "--step-from=order"],
            "merge": ["merge", *inside, f"--out={out}"],
            "extract": ["extract", *inside[:1], f"--out={out}"],
        }[what]
        with within(20):  # far more than a second for these, on a machine with much else to do
            status, said = said_by(arguments)
        assert status in (0, 2)
        if status == 2:
            assert said.startswith(("error: ", "usage: ")), said
            assert said.startswith("usage: ") or said.count("\n") == 1
            assert not out.exists()
        assert contents_of(folder) == before
        assert not os.path.exists(RAN)
        assert {path.name for path in pathlib.Path(made).iterdir()} <= {"run", out.name}


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


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a_1.pt", b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file, as Keras and TensorFlow write them"),
        ("a_1.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS"),
        ("a_1.pt", {"config.json": b"", "metadata.json": b"", "model.weights.h5": b""}, "a model of Keras"),
        ("a_1.pt", {"a/data.pkl": b"", "a/constants.pkl": b"", "a/code/x.py": b""}, "TorchScript"),
        ("a_1.pt", {"w.npy": b"", "v.npy": b""}, "an .npz file of NumPy"),
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
