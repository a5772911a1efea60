"""The command `weight-averaging`: what it teaches, says and refuses, and what it needs."""

import re
import signal
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import weight_averaging
from weight_averaging import cli, offline
from weight_averaging.cli import common
from weight_averaging.cli.inspect import _intervals
from weight_averaging.offline import recording
from weight_averaging.torch import LAWA


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    for step in (100, 200, 300, 400):
        state = {"w": torch.full((4, 2), float(step)), "count": torch.tensor(step)}
        torch.save(state, tmp_path / "run" / f"step_{step}.pt")
    return tmp_path / "run"


def command(capsys, *arguments) -> str:
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit:
        said = capsys.readouterr()
        return said.err or said.out
    return capsys.readouterr().out


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_help_teaches_by_three_examples_that_parse(capsys, name):
    said = command(capsys, name, "--help")
    examples = [line for line in said.splitlines() if line.startswith(f"  weight-averaging {name} ")]
    assert len(examples) == 3
    for example in examples:
        words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', example)][1:]
        assert cli.parser().parse_args(words).command == name
    about = cli.COMMANDS[name].__doc__.partition("\n")[0]
    assert about in " ".join(said.split())
    everything = command(capsys, "--help")
    assert everything.count("  weight-averaging ") == 3
    assert about in " ".join(everything.split())


def test_its_version_and_one_of_a_kind(capsys, folder, tmp_path):
    assert command(capsys, "--version") == f"weight-averaging {weight_averaging.__version__}\n"
    said = command(capsys, "average", folder / "step_400.pt", "--lawa=window=1", f"--out={tmp_path / 'x.pt'}")
    assert said.startswith(f"{folder / 'step_400.pt'}: 1 snapshot, step 400, 40 B each")
    assert "1 average from 1 snapshot, " in said
    assert "made of 1 snapshot, step 400" in said
    said = command(capsys, "average", folder, "--lawa=window=1,interval=500", f"--out={tmp_path / 'y.pt'}")
    assert "lawa window=1 interval=500 at step 400 needs a snapshot, but there are none up to there" in said


def test_the_end_says_what_went_in_where_it_is_and_how_to_load_it(capsys, folder, tmp_path):
    out = tmp_path / "average.safetensors"
    said = command(capsys, "average", folder, "--lawa=window=2", "--at=350", f"--out={out}")
    lines = said.splitlines()
    assert f"{out}: lawa window=2 as of step 350, made of 2 snapshots, steps 200, 300" in lines
    assert lines[-1] == f'load: model.load_state_dict(safetensors.torch.load_file("{out}"))'
    model = torch.nn.Module()
    model.register_parameter("w", torch.nn.Parameter(torch.zeros(4, 2)))
    model.register_buffer("count", torch.tensor(0))
    import safetensors.torch

    model.load_state_dict(safetensors.torch.load_file(out))
    assert model.w[0, 0].item() == 250.0
    for at in ("9999", "100,9999"):
        said = command(capsys, "average", folder, "--lawa=window=1", f"--at={at}", f"--out={out}")
        assert said.endswith("error: --at 9999 is beyond the last snapshot, which is of step 400\n")
    said = command(capsys, "average", folder, "--merge=shape=cosine,share=.5:1", f"--out={tmp_path / 'both'}")
    assert "merge share=0.5 shape=cosine as of step 400, made of 2 snapshots, steps 300, 400" in said
    assert "merge share=1.0 shape=cosine as of step 400, made of 4 snapshots, steps 100, 200, 300, 400" in said


def test_inspect_says_what_is_there_and_possible(capsys, folder):
    (folder / "best.pt").symlink_to("step_200.pt")
    said = command(capsys, "inspect", folder).splitlines()
    assert said[:5] == [
        "left out: best.pt ('best' in its name)",
        "checkpoints: 4, steps 100, 200, 300, 400, 100 apart",
        "steps are from the number after 'step' in its name",
        "form: state dict",
        "weights: 40 B each; elements by type (tensors): float32 8 (1), int64 1 (1)",
    ]
    assert "  interval=100: window 1 to 4" in said
    assert "  interval=200: window 1 to 2" in said
    assert "  --tail, --merge: share above 0.25 for two steps or more" in said
    assert not any("interval=300" in line for line in said)  # one
    assert _intervals([*range(10, 200, 10)]) == [(10, 19), (20, 9), (30, 6), (40, 4), (50, 3), (60, 3)]
    assert not any("share" in line for line in command(capsys, "inspect", folder / "step_100.pt").splitlines())
    # What it says is possible is, and no more.
    for window in (4, 5):
        done = command(
            capsys, "average", folder, f"--lawa=window={window},interval=100", f"--out={folder / 'x.safetensors'}"
        )
        assert ("made of 4 snapshots" in done) == (window == 4)
        (folder / "x.safetensors").unlink(missing_ok=True)
    assert said[-1].endswith("--lawa window=4 --out average.safetensors")


def test_five_of_the_tensors_that_are_not_averaged_are_named(capsys, tmp_path):
    for number, more in ((5, ""), (6, ", ...")):
        run, out = tmp_path / f"run_{number}", tmp_path / f"average_{number}.pt"
        model = torch.nn.Sequential(*[torch.nn.Linear(1, 1, bias=False) for _ in range(number + 1)])
        model[:-1].requires_grad_(False)
        with recording.SnapshotWriter(run, interval=1) as writer:
            writer.update(1, model)
        names = ", ".join(f"{index}.weight" for index in range(5)) + more
        said = command(capsys, "inspect", run).splitlines()
        assert f"not averaged, taken from the latest: {number} tensors, {names}" in said
        said = command(capsys, "average", run, "--lawa=window=1", f"--out={out}").splitlines()
        assert f"not averaged but taken from the latest snapshot ({number} tensors): {names}" in said


def test_several_averages_go_into_a_folder(capsys, folder, tmp_path):
    two = ["--lawa=window=1:2"]
    said = command(capsys, "average", folder, *two, f"--out={tmp_path / 'x.pt'}")
    assert said.endswith(f"error: --out={tmp_path / 'x.pt'} is one file for 2 averages: name a folder\n")
    out = tmp_path / "both"
    command(capsys, "average", folder, *two, f"--out={out}")
    assert {path.name for path in out.iterdir()} == {f"lawa_window{n}_step_400.safetensors" for n in (1, 2)}
    for step in (1, 2):
        (tmp_path / "output" / f"checkpoint-{step}").mkdir(parents=True)
        state = {"w": torch.full((2,), float(step))}
        save_file(state, tmp_path / "output" / f"checkpoint-{step}" / "model.safetensors")
    out = tmp_path / "new" / "both.d"  # an ending that is none of a file's
    command(capsys, "average", tmp_path / "output", *two, f"--out={out}")
    assert {path.name for path in out.iterdir()} == {f"lawa_window{n}_step_2" for n in (1, 2)}
    assert load_file(out / "lawa_window2_step_2" / "model.safetensors")["w"].tolist() == [1.5, 1.5]
    torch.save(state, tmp_path / "step_1.pt")
    mixed = [tmp_path / "step_1.pt", tmp_path / "output" / "checkpoint-2", "--step-from=name"]
    command(capsys, "average", *mixed, *two, f"--out={tmp_path / 'mixed'}")  # the latest one's form
    assert {path.name for path in (tmp_path / "mixed").iterdir()} == {f"lawa_window{n}_step_2" for n in (1, 2)}


def test_names_that_wrappers_added_are_told_and_may_be_dropped(capsys, tmp_path):
    torch.save({"module.w": torch.ones(2)}, tmp_path / "step_1.pt")
    for flags, name in (([], "module.w"), (["--plain-names"], "w")):
        out = tmp_path / name
        said = command(capsys, "average", tmp_path / "step_1.pt", "--lawa=window=1", *flags, f"--out={out}.safetensors")
        told = "names are as saved (module.w, ...): --plain-names drops what wrappers add" in said
        assert told is not bool(flags)
        assert "extra state" not in said
        assert load_file(f"{out}.safetensors").keys() == {name}


def test_what_the_checkpoints_are_taken_for_is_told(capsys, tmp_path):
    """As of Lightning's own averaging, which has its average where others have the weights."""
    states = {key: {"w": torch.full((2,), value)} for key, value in (("state_dict", 1.0), ("current_model_state", 2.0))}
    torch.save({**states, "averaging_state": {}, "global_step": 1}, tmp_path / "a.ckpt")
    said = command(capsys, "inspect", tmp_path / "a.ckpt")
    assert "averaged are the raw weights (current_model_state), not Lightning's averages of them (state_dict)" in said


def test_what_is_beside_the_model_is_told(capsys, tmp_path):
    files = [tmp_path / f"step_{step}.pt" for step in (1, 2)]
    for file, more in zip(files, ({}, {"other": {"c": torch.ones(1)}}), strict=True):
        models = {"model": {"w": torch.ones(2)}, "ema": {"w": torch.ones(2)}, **more}
        torch.save({**models, "optimizer": {"state": {}, "param_groups": []}}, file)
    for out, told in (
        ("x.pt", ["averaged too, each on its own: ema (1 tensor)", "not in the average: other, optimizer"]),
        ("x.safetensors", ["left out, since a state dict is of one model: ema (1 tensor)"]),
    ):
        lines = command(capsys, "average", *files, "--lawa=window=2", f"--out={tmp_path / out}").splitlines()
        assert lines[0].startswith(f"{files[0]}, ...: 2 snapshots, steps 1 to 2, 8 B each; the latest is a ")
        for line in told:
            assert line in lines
        assert "left out, since not all checkpoints have them alike: other" in lines


def test_extra_state_that_a_file_has_no_place_for_is_told(capsys, tmp_path):
    torch.save({"w": torch.ones(2), "a._extra_state": {"b": 1}}, tmp_path / "step_1.pt")
    for out, told in (("x.safetensors", True), ("x.pt", False)):
        said = command(capsys, "average", tmp_path / "step_1.pt", "--lawa=window=1", f"--out={tmp_path / out}")
        line = "left out of files that are a state dict of tensors alone: 1 entry of extra state, as a._extra_state"
        assert (line in said.splitlines()) is told


def test_inspect_finds_an_averager(capsys, tmp_path):
    model = torch.nn.Linear(2, 2)
    averager = LAWA(model, interval=1, window=1)
    averager.update(1)
    path = tmp_path / "step_1.pt"
    torch.save({"model": model.state_dict(), "any": averager.state_dict()}, path)
    said = command(capsys, "inspect", path)
    assert f"an averager's state is in the latest (LAWA): weight-averaging extract {path}" in said
    out = tmp_path / "average.pt"
    said = command(capsys, "extract", path, f"--out={out}")
    assert said.endswith(f'load: model.load_state_dict(torch.load("{out}"))\n')
    model.load_state_dict(torch.load(out))
    out = out.with_suffix(".safetensors")
    command(capsys, "extract", path, f"--out={out}")
    with safe_open(out, "pt") as file:
        assert file.metadata() == {"format": "pt", "average": "of an averager's state"}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--merge=share=.5"], "--merge share=.5: shape=... is missing"),
        (["--merge=shape=square,share=.5"], "shape must be one of linear, cosine, 1-sqrt, not 'square'"),
        (["--ema=decay=.5,warmup=perhaps"], "warmup must be true or false, not 'perhaps'"),
        (["--lawa=window=2", "--exclude=nothing"], "exclude: no tensor is called, or matches, 'nothing'; there is "),
    ],
)
def test_what_cannot_be_ends_in_one_line(capsys, folder, tmp_path, flags, says):
    said = command(capsys, "average", folder, *flags, f"--out={tmp_path / 'x.pt'}")
    assert says in said
    assert said.count("\n") == 1
    assert not (tmp_path / "x.pt").exists()


def test_a_dozen_steps_are_named_and_of_more_some():
    assert common.listed(range(1, 13)) == ", ".join(map(str, range(1, 13)))
    assert common.listed(range(1, 14)) == "1, 2, ..., 13"


def test_what_is_missing_is_asked_for(capsys, folder, tmp_path):
    files = [folder / "step_100.pt", folder / "step_200.pt"]
    for arguments, says in (
        (["average", folder], "say what to average: --lawa window=20, --ema decay=.95, --tail share=.25, --power "),
        (["average", folder, "--lawa=window=2"], "say where to write: --out model.safetensors\n"),
        (["merge", *files], "say where to write: --out model.safetensors\n"),
        (
            ["average", folder, "--lawa=window=2", "--at=a,2", f"--out={tmp_path / 'x.pt'}"],
            "--at=a,2 must be steps with",
        ),
        (["inspect", tmp_path / "none"], f"{tmp_path / 'none'} is not there\n"),
    ):
        said = command(capsys, *arguments)
        assert said.startswith(f"error: {says}")
        assert said.count("\n") == 1


def test_ctrl_c_leaves_nothing_and_says_so(capsys, folder, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(offline.Plan, "run_parts", interrupted)
    for out in ("x.pt", "x.safetensors"):
        with pytest.raises(SystemExit) as end:
            cli.main(["average", str(folder), "--lawa=window=2", f"--out={tmp_path / out}"])
        assert end.value.code == 130
        assert capsys.readouterr().err == "\nstopped: nothing was written, and the same command starts anew\n"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_its_exit_status_says_how_it_ended(capsys, monkeypatch):
    def ended_by(error) -> tuple[int, str]:
        def run(args):
            if isinstance(error, int):
                signal.raise_signal(error)
            raise error

        monkeypatch.setattr(cli.plan, "run", run)
        with pytest.raises(SystemExit) as end:
            cli.main(["plan", "--params=1", "--step-seconds=1"])
        return end.value.code, capsys.readouterr().err

    def before(number, frame):
        pass

    stopped = "\nstopped: nothing was written, and the same command starts anew\n"
    own = signal.signal(signal.SIGTERM, before)
    try:
        assert ended_by(ValueError("two\nlines")) == (2, "error: two\\nlines\n")
        assert ended_by(OSError("full")) == (2, "error: full\n")
        assert ended_by(MemoryError("of 3 GB")) == (2, "error: there is not enough memory: of 3 GB\n")
        assert ended_by(KeyboardInterrupt()) == (130, stopped)
        assert ended_by(signal.SIGTERM) == (143, stopped)
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGTERM, own)


@pytest.mark.parametrize("text", ["abc", "-1", "0", "nan", "inf"])
def test_memory_is_a_positive_number(capsys, folder, tmp_path, text):
    said = command(capsys, "average", folder, "--lawa=window=2", f"--memory-gb={text}", f"--out={tmp_path / 'x.pt'}")
    assert said.startswith(f"error: argument --memory-gb: must be a number > 0, not {text}; for example: ")


def test_checksums_are_compared_if_asked(capsys, tmp_path):
    with recording.SnapshotWriter(tmp_path / "run", interval=1) as writer:
        writer.update(1, torch.nn.Linear(2, 2))
    path = tmp_path / "run" / "step_00000001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    said = command(capsys, "average", tmp_path / "run", "--lawa=window=1", "--verify", f"--out={tmp_path / 'x.pt'}")
    assert "is not as it was written: its checksum differs" in said


@pytest.mark.parametrize("gone", ["numpy, tqdm, safetensors", "torch"])
def test_torch_is_all_it_needs(folder, tmp_path, gone):
    out = tmp_path / "average.safetensors"
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({gone.split(', ')!r})); from weight_averaging.cli import main; "
        "main(sys.argv[1:])"
    )
    arguments = ["average", str(folder), "--lawa=window=2", f"--out={out}"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert out.exists() == (gone != "torch"), done.stderr
    if gone == "torch":
        assert done.stderr == "error: checkpoints are read with torch: pip install 'weight-averaging[torch]'\n"
        subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, check=True)


def test_without_tqdm_a_line_says_how_far_it_is(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with common.progress(2_000_000_000) as add:
        for _ in range(4):
            add(500_000_000)
    said = capsys.readouterr().err
    assert [line.strip() for line in said.strip().split("\r")] == [
        "25 % of 2 GB", "50 % of 2 GB", "75 % of 2 GB", "100 % of 2 GB"
    ]  # fmt: skip
    for counts, shown in (([], ""), ([1, 1], "\r  5 % of 20 B\r 10 % of 20 B\n"), ([0, 0], "\r  0 % of 20 B\n")):
        with common.progress(20) as add:
            for count in counts:
                add(count)
        assert capsys.readouterr().err == shown
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    with common.progress(1) as add:
        add(1)
    assert capsys.readouterr().err == ""
