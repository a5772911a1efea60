"""The command: plain use, bounded memory, its errors, and log folders of a workload."""

import json

import pandas as pd
import pytest
import torch
from torch import nn

from analysis.reading import logs
from scripts import average_checkpoints as script
from tests.support.warm_python import python
from weight_averaging.offline import EMA, LAWA, Plan
from weight_averaging.offline.reading.snapshots import Snapshots
from weight_averaging.offline.safetensors_files import SafetensorsFile
from weight_averaging.offline.writing.to_files import average_to_files

OWN = """
from dataclasses import dataclass
from weight_averaging.averages import Average

@dataclass(frozen=True, kw_only=True)
class Uniform(Average):
    ranks: tuple[int, ...] = (1,)
    is_recursive = True

    def weight(self, number, functions=None):
        return 1 / number
"""
pytestmark = pytest.mark.usefixtures("few_held_out_images")


def states(count: int = 8) -> dict[int, dict[str, torch.Tensor]]:
    made = {}
    for step in range(1, count + 1):
        torch.manual_seed(step)
        model = nn.Sequential(nn.Linear(30, 40), nn.BatchNorm1d(40), nn.Linear(40, 2)).to(torch.bfloat16)
        made[10 * step] = model.state_dict()
    return made


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    for step, state in states().items():
        torch.save(state, tmp_path / "run" / f"step_{step}.pt")
    return tmp_path / "run"


def call(capsys, folder, **flags) -> str:
    """What the command says: on stderr if it fails."""
    arguments = [str(folder)]
    for name, value in flags.items():
        values = value if isinstance(value, list) else [value]
        arguments += [f"--{name}" if one is True else f"--{name}={one}" for one in values]
    try:
        script.main(arguments)
    except SystemExit:
        return capsys.readouterr().err
    return capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_plain_use(capsys, folder, tmp_path, suffix):
    out = tmp_path / "new" / f"model.{suffix}"
    said = call(capsys, folder, lawa=["window=3"], out=str(out))
    assert "8 snapshots, steps 10 to 80" in said
    assert "1 average from 3 snapshots" in said
    assert "1 float32 copy and a snapshot" in said
    read = torch.load(out) if suffix == "pt" else SafetensorsFile(out).read(list(SafetensorsFile(out).layout))
    expected = torch.stack([states()[step]["0.weight"].float() for step in (60, 70, 80)]).mean(0)
    assert read["0.weight"].dtype == torch.bfloat16
    torch.testing.assert_close(read["0.weight"], expected.bfloat16())
    assert read.keys() == states()[10].keys()


def test_many_averages_go_to_a_folder_in_float32(capsys, folder, tmp_path):
    out = tmp_path / "out"
    call(capsys, folder, lawa=["window=2:3,interval=20"], ema=["decay=.5"], at="60,80", float32=True, out=str(out))
    assert len(list(out.iterdir())) == 6
    file = SafetensorsFile(out / "lawa_window3_interval20_step_60.safetensors")
    assert file.layout["0.weight"] == ((40, 30), torch.float32)
    about = {"average": "lawa window=3 interval=20", "step": "60", "members": "20,40,60", "format": "pt"}
    assert file.metadata == about


def test_group_by_group_is_the_same_as_at_once(folder, tmp_path):
    snapshots = Snapshots(folder)
    wanted = [(LAWA(window=4), 80), (EMA(decay=0.9), 70), (EMA(decay=0.9), 80)]
    read = []
    for name, budget in (("once", 10**9), ("groups", 2000)):
        plan = Plan(wanted, snapshots.steps)
        outputs = {pair: tmp_path / f"{name}_{i}.safetensors" for i, pair in enumerate(wanted)}
        count = []
        average_to_files(snapshots, plan, outputs, budget, count.append)
        read.append(sum(count))
    assert read == [8 * snapshots.nbytes] * 2  # each byte once
    for i in range(3):
        assert (tmp_path / f"once_{i}.safetensors").read_bytes() == (tmp_path / f"groups_{i}.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({}, "error: say what to average: --lawa window=20"),
        ({"lawa": ["window=3"]}, "error: say where to write: --out model.safetensors"),
        ({"lawa": ["windows=3"]}, "error: --lawa windows=3: expected window=..., allow_partial=..., interval"),
        ({"lawa": ["window=3.5"]}, "--lawa window=3.5: window must be a whole number, not '3.5'"),
        ({"lawa": ["interval=3"]}, "window=... is missing"),
        ({"ema": ["decay=1"]}, "decay must be a number in [0, 1), not 1.0"),
        ({"lawa": ["window=9"], "out": "x.pt"}, "lawa window=9 at step 80 needs 9 snapshots, but there are 8 up to"),
        ({"lawa": ["window=2:3"], "out": "x.pt"}, "--out=x.pt is one file for 2 averages: name a folder"),
        ({"lawa": ["window=2"], "out": "x.onnx"}, "x.onnx: the name must end in .safetensors or .pt"),
        ({"lawa": ["window=2"], "at": "a", "out": "x.pt"}, "--at=a must be steps"),
        (
            {"lawa": ["window=2"], "at": "9999", "out": "x.pt"},
            "--at 9999 is beyond the last snapshot, which is of step 80",
        ),
        (
            {"workload": "mini_criteo1tb", "best": "2", "metric": "x"},
            "--best writes a file, and does not go with --work",
        ),
        (
            {"lawa": ["window=2"], "workload": "mini_criteo1tb", "recompute-batch-norm": "a:b"},
            "--recompute-batch-norm writes a file",
        ),
        ({"lawa": ["window=2"], "workload": "mini_criteo1tb"}, "neither it nor the folder above has the run's eval_"),
    ],
)
def test_errors_in_one_line(capsys, folder, flags, says):
    said = call(capsys, folder, **flags)
    assert says in said
    assert said.count("\n") == 1


def test_logs_of_a_workload_can_be_read_and_resumed(capsys, tmp_path, monkeypatch):
    """Averages of a run's own checkpoints, evaluated; and one of them is what the run with that averager had."""
    from tests.miniperf.test_runner import settings_of, train, trial

    runs = tmp_path / "runs"
    home = {n: runs / n / "study_3" / "mini_imagenet_vit_pytorch" / "trial_1" for n in ("nadamw", "lawa")}
    for name, folder in home.items():
        train(folder, trial(tmp_path, name), settings_of(name, steps=24, every=3))
    flags = {"workload": "mini_imagenet_vit", "experiment_dir": str(runs), "lawa": ["window=4:2,interval=3"]}
    call(capsys, home["nadamw"], at="12,15", **{**flags, "lawa": ["window=4,interval=3"]})  # as if stopped there
    call(capsys, home["nadamw"], **flags)
    read = logs.read(runs)
    assert set(read.runs["submission"]) == {"nadamw", "lawa", "offline_lawa"}
    offline = runs / "offline_lawa" / "study_3" / "mini_imagenet_vit_pytorch"
    averaged = pd.read_csv(offline / "trial_1" / "eval_measurements.csv")
    assert list(averaged["global_step"]) == [12, 15, 18, 21, 24]
    online = pd.read_csv(home["lawa"] / "eval_measurements.csv")
    online = online[online["global_step"] >= 12]
    for column in [name for name in online if "/" in name]:
        assert list(averaged[column]) == list(online[column]), column
    before = (offline / "trial_2" / "eval_measurements.csv").read_bytes()
    call(capsys, home["nadamw"], **flags)
    assert (offline / "trial_2" / "eval_measurements.csv").read_bytes() == before
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_average.py").write_text(OWN)
    own = {**flags, "lawa": [], "average": "own_average:Uniform,interval=3", "at": "24"}
    for _ in range(2):  # the second time it is there
        said = call(capsys, home["nadamw"], **own)
        assert "trial_1: uniform interval=3, evaluated at steps 24" in said
    said = call(capsys, home["nadamw"], **{**flags, "lawa": ["window=3,interval=3"]})
    there = f"{offline / 'trial_1'} is of other hyperparameters than lawa window=3 interval=3"
    assert said == f"error: {there}: give another --experiment_name\n"
    another = {**flags, "lawa": ["window=3,interval=3"], "experiment_name": "second", "workload": "mini_criteo1tb"}
    said = call(capsys, home["nadamw"], **another)
    assert "holds no snapshots of mini_criteo1tb: " in said
    assert not (runs / "second_lawa").exists()  # no empty folder of a trial
    said = call(capsys, home["nadamw"], **{**another, "workload": "mini_imagenet_vit"})
    assert (runs / "second_lawa/study_3/mini_imagenet_vit_pytorch/trial_1/eval_measurements.csv").exists()
    said = call(capsys, home["nadamw"], **{**another, "workload": "mini_imagenet_vit", "at": "10"})
    folder = runs / "second_lawa/study_3/mini_imagenet_vit_pytorch/trial_1"
    until = f"{folder} has evaluations up to step 24, so step 10 cannot be added"
    assert said == f"error: {until}: give another --experiment_name\n"


def test_averages_of_a_search_space_are_refused_to_another_run(capsys, tmp_path):
    from tests.miniperf.test_runner import AVERAGING, HYPERPARAMETERS, settings_of, train, trial

    home = tmp_path / "nadamw" / "study_0" / "mini_imagenet_vit_pytorch" / "trial_1"
    train(home, trial(tmp_path, "nadamw"), settings_of("nadamw", steps=6, every=3))
    (home / "hparams.json").write_text(json.dumps(HYPERPARAMETERS))
    space = tmp_path / "space.json"
    points = [{**HYPERPARAMETERS, **AVERAGING["lawa"], "learning_rate": rate} for rate in (1e-2, 2e-2)]
    space.write_text(json.dumps(points))
    flags = {"workload": "mini_imagenet_vit", "submission": "lawa", "experiment_dir": str(tmp_path)}
    said = call(capsys, home, **flags, tuning_search_space=str(space), trials="1,2")
    assert f"--trials: point 2 of {space} has learning_rate 0.02, the run 0.01: its average is another run's" in said
    said = call(capsys, home, **flags, tuning_search_space=str(space), trials="3")
    assert f"--trials: {space} has points 1 to 2, and no 3" in said
    said = call(capsys, home, **flags, tuning_search_space=str(space))
    assert "left out: lawa window=4 interval=3" in said  # six updates do not fill it
    said = call(capsys, home, submission="lawa")
    assert "--submission goes with --workload and --tuning_search_space" in said


def test_plain_use_imports_no_workload(folder, tmp_path):
    import subprocess

    code = (
        "import sys; sys.modules['miniperf'] = None; from scripts import average_checkpoints as s;"
        f"s.main([{str(folder)!r}, '--lawa', 'window=2', '--out', {str(tmp_path / 'm.pt')!r}])"
    )
    subprocess.run([python(), "-c", code], check=True)
    assert (tmp_path / "m.pt").exists()
