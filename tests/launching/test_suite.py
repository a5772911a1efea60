"""The suite: many runs, stopped and continued."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from launching import suite
from tests.support.killing import killed_at_every_change
from tests.support.warm_python import python


def command(root: Path, *arguments: str) -> list[str]:
    return [python(), "-m", "scripts.suite", f"--experiment_dir={root}", "--jobs=2", *arguments]


QUICK = ["--workloads=mini_imagenet_vit", "--submissions=nadamw,lawa", "--max_global_steps=60", "--evaluations=6"]


def metrics(root: Path) -> dict[str, pd.DataFrame]:
    tables = {}
    for path in sorted(root.glob("*/study_*/*/trial_*/eval_measurements.csv")):
        table = pd.read_csv(path, dtype=str)
        tables[str(path.relative_to(root))] = table[[c for c in table if "/" in c or c == "global_step"]]
    return tables


def test_a_stopped_suite_goes_on_and_repeats_nothing(tmp_path):
    done = subprocess.run(command(tmp_path / "whole", *QUICK), check=True, capture_output=True, text=True)
    *runs, end = done.stdout.splitlines()
    assert [line.split(": best validation/accuracy 0.")[0][:4] for line in runs] == ["1/2 ", "2/2 "]
    assert end.startswith(f"all runs are in {tmp_path / 'whole'}; compare them: python -m scripts.report --runs=")
    whole = metrics(tmp_path / "whole")
    assert len(whole) == 2
    assert all(list(table["global_step"].astype(int)) == [1, *range(10, 61, 10)] for table in whole.values())

    broken = tmp_path / "broken"
    process = subprocess.Popen(
        command(broken, *QUICK), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    while not list(broken.glob("*/study_0/*/trial_*/checkpoint_[1-4]0")):  # some updates are saved, not all
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.decode().splitlines()[-1] == f"stopped: the same command goes on from the last checkpoints in {broken}"
    subprocess.run(command(broken, *QUICK), check=True, capture_output=True)
    after = metrics(broken)
    assert after.keys() == whole.keys()
    for name, table in whole.items():
        pd.testing.assert_frame_equal(after[name], table)

    stamps = {path: path.stat().st_mtime_ns for path in broken.rglob("checkpoint_*")}
    subprocess.run(command(broken, *QUICK), check=True, capture_output=True)
    assert {path: path.stat().st_mtime_ns for path in broken.rglob("checkpoint_*")} == stamps


def test_a_comparison_runs_its_grid_at_the_tuned_trial(tmp_path):
    content = {
        "title": "t", "question": "q", "submissions": ["nadamw", "lawa"], "seeds": 5,
        "workloads": "all",
        "search_spaces": "tuning_search_spaces/miniperf", "grid": {"lawa": {"averaging_window": [2, 3]}},
        "figures": [{"name": "f", "kind": "best"}],
    }  # fmt: skip
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(content))
    arguments = [f"--comparison={path}", "--max_global_steps=20", "--workloads=mini_imagenet_vit", "--seeds=1"]
    done = subprocess.run(command(tmp_path / "runs", *arguments), check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1].endswith(f"scripts.report --runs={tmp_path / 'runs'} --comparison={path}")
    assert {len(table) for table in metrics(tmp_path / "runs").values()} == {3}  # after updates 1, 10 and 20
    found = [json.loads(p.read_text()) for p in sorted((tmp_path / "runs/lawa").rglob("hparams.json"))]
    tuned = json.loads(Path("tuning_search_spaces/miniperf/tuned_trials.json").read_text())["mini_imagenet_vit"]
    points = json.loads(Path("tuning_search_spaces/miniperf/lawa.json").read_text())
    assert found == [{**points[tuned - 1], "averaging_window": window} for window in (2, 3)]
    assert len(list((tmp_path / "runs/nadamw").rglob("hparams.json"))) == 1


def test_an_offline_comparison_is_what_training_would_have_given(tmp_path):
    grid = {"averaging_horizon": [None], "averaging_interval": [4], "averaging_window": [3, 30]}
    content = {
        "title": "t", "paper": "p", "question": "q", "submissions": ["nadamw", "lawa"], "seeds": 1,
        "workloads": ["mini_imagenet_vit"], "search_spaces": "tuning_search_spaces/miniperf", "grid": {"lawa": grid},
        "figures": [{"name": "f", "kind": "best"}],
    }  # fmt: skip
    found = {}
    for name, offline in (("offline", True), ("online", False)):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**content, "offline": offline}))
        arguments = [f"--comparison={path}", "--max_global_steps=40", "--evaluations=4"]
        subprocess.run(command(tmp_path / name, *arguments), check=True, capture_output=True)
        found[name] = metrics(tmp_path / name)
    lawa = sorted(table for table in found["online"] if table.startswith("lawa"))
    assert set(found["offline"]) == set(found["online"]) - {lawa[1]}  # a window of 30 is never full
    averaged, trained = found["offline"][lawa[0]], found["online"][lawa[0]]
    assert list(averaged["global_step"].astype(int)) == [20, 30, 40]  # once the window is full
    trained = trained[trained["global_step"].astype(int) >= 20].reset_index(drop=True)
    pd.testing.assert_frame_equal(averaged, trained[list(averaged)])
    assert set(averaged) == {name for name in trained if name.startswith("validation/")} | {"global_step"}
    hparams = [json.loads((tmp_path / name / lawa[0]).with_name("hparams.json").read_text()) for name in found]
    assert hparams[0] == hparams[1]

    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "offline").rglob("*.csv")}
    arguments = [f"--comparison={tmp_path / 'offline.yaml'}", "--max_global_steps=40", "--evaluations=4"]
    subprocess.run(command(tmp_path / "offline", *arguments), check=True, capture_output=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "offline").rglob("*.csv")} == stamps
    (tmp_path / "other.yaml").write_text(
        yaml.safe_dump({**content, "grid": {"lawa": {**grid, "averaging_window": [2]}}})
    )
    other = command(tmp_path / "offline", f"--comparison={tmp_path / 'other.yaml'}")
    result = subprocess.run(other, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "search_spaces/lawa.json is of another comparison: choose another --experiment_dir" in result.stderr


def test_merges_of_a_run_at_a_constant_rate_stand_beside_the_decay(tmp_path):
    """The linear merge of the last half is the plain mean: what LAWA of that horizon evaluates at the end."""
    interval, steps = {"averaging_horizon": [None], "averaging_interval": [4]}, 40
    content = {
        "title": "t", "question": "q", "seeds": 1, "workloads": ["mini_imagenet_vit"], "offline": True,
        "submissions": ["nadamw", "nadamw_no_decay", "lawa_no_decay", "merge_no_decay"],
        "search_spaces": "tuning_search_spaces/miniperf", "figures": [{"name": "f", "kind": "best"}],
        "grid": {
            "lawa_no_decay": {**interval, "averaging_window": [5]},
            "merge_no_decay": {
                "averaging_interval": [4], "averaging_share": [0.5], "averaging_shape": ["linear", "1-sqrt"]
            },
        },
    }  # fmt: skip
    path = tmp_path / "merges.yaml"
    path.write_text(yaml.safe_dump(content))
    arguments = [f"--comparison={path}", f"--max_global_steps={steps}", "--evaluations=4"]
    subprocess.run(command(tmp_path / "runs", *arguments), check=True, capture_output=True)
    ends = {}
    for name, table in metrics(tmp_path / "runs").items():
        hparams = json.loads((tmp_path / "runs" / name).with_name("hparams.json").read_text())
        assert int(table["global_step"].iloc[-1]) == steps
        ends[name.split("/")[0], hparams.get("averaging_shape")] = table["validation/loss"].iloc[-1]
    assert len(ends) == 5
    assert float(ends["merge_no_decay", "linear"]) == pytest.approx(float(ends["lawa_no_decay", None]), rel=1e-5)
    assert ends["merge_no_decay", "1-sqrt"] != ends["merge_no_decay", "linear"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--submissions=merge_no_decay"], "--submissions=merge_no_decay is unknown; choose from adamw,"),
        (["--submissions=lawaa"], "--submissions=lawaa is unknown; choose from adamw,"),
        (["--workloads=mini_wnt"], "--workload=mini_wnt is unknown; choose from mini_criteo1tb"),
        (["--comparison=comparisons/nothing.yaml"], "--comparison=comparisons/nothing.yaml: No such file"),
        (["--comparison=setup.cfg"], "setup.cfg"),
        (
            ["--comparison=comparisons/no_decay.yaml", "--submissions=ema"],
            "--submissions cannot be given with --comparison",
        ),
        (["--search_spaces=nowhere"], "--search_spaces=nowhere: cannot read tuned_trials.json"),
    ],
)
def test_bad_input_is_named_before_anything_runs(tmp_path, arguments, message):
    result = subprocess.run(command(tmp_path / "runs", *arguments), capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_a_misspelled_hyperparameter_of_a_grid_is_named_before_anything_runs(tmp_path):
    content = {
        "title": "t", "question": "q", "submissions": ["nadamw", "lawa"], "seeds": 1,
        "workloads": ["mini_imagenet_vit"], "search_spaces": "tuning_search_spaces/miniperf",
        "grid": {"lawa": {"averaging_windw": [2]}},
        "figures": [{"name": "f", "kind": "best"}], "offline": True,
    }  # fmt: skip
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(content))
    result = subprocess.run(
        command(tmp_path / "runs", f"--comparison={path}"), capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: comparison grid: grid of lawa: ")
    assert "averaging_windw" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list((tmp_path / "runs").rglob("trial_*"))


def test_another_optimizer_has_tuned_trials_of_its_own(tmp_path):
    spaces = tmp_path / "spaces"
    spaces.mkdir()
    for name in ("nadamw", "ademamix", "ademamix_lawa"):
        (spaces / f"{name}.json").write_text(Path(f"tuning_search_spaces/miniperf/{name}.json").read_text())
    trials = {"mini_imagenet_vit": 1, "ademamix": {"mini_imagenet_vit": 2}}
    (spaces / "tuned_trials.json").write_text(json.dumps(trials))
    arguments = [
        f"--search_spaces={spaces}", "--submissions=nadamw,ademamix,ademamix_lawa", "--workloads=mini_imagenet_vit",
        "--max_global_steps=20",
    ]  # fmt: skip
    subprocess.run(command(tmp_path / "runs", *arguments), check=True, capture_output=True)
    found = {path.parts[0]: path.parent.name for path in map(Path, metrics(tmp_path / "runs"))}
    assert found == {"nadamw": "trial_1", "ademamix": "trial_2", "ademamix_lawa": "trial_2"}


def test_what_a_kill_leaves_of_the_points_refuses_no_later_start(tmp_path):
    home = tmp_path / "runs"
    home.mkdir()
    space = suite._SearchSpace("lawa", home / "search_spaces" / "lawa.json", [{"learning_rate": 0.1}], {})
    for _ in killed_at_every_change(home, suite._write, space):
        suite._write(space)
        assert json.loads(space.file.read_text()) == space.points
