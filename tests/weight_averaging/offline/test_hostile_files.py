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
import tempfile
import warnings

import torch
import torch.distributed.checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weight_averaging import cli
from weight_averaging.offline.forms import flax_format
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
