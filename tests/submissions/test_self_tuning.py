"""Submissions without a hyperparameter, and that every command knows them by that."""

import importlib
import json
import os
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from launching import bundle, sweep
from miniperf import search
from tests.support.warm_python import python
from weight_averaging.errors import UsageError

FOLDERS = sorted(path.parent for path in Path("submissions").glob("*/*/submission.py"))


def command(script: str, *flags: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = [python(), "-m", f"scripts.{script}", *flags]
    return subprocess.run(whole, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_those_without_a_search_space_have_a_point_and_no_others(folder):
    module = importlib.import_module(f"{'.'.join(folder.parts)}.submission")
    if missing := module.recipe.optimizer.missing():
        pytest.skip(missing)
    own = search.default_path(folder.name, "mini_ogbg", official=False) is None
    assert (module.recipe.point is not None) == own == bundle.has_point(Path(), "/".join(folder.parts[1:]))
    for none in (None, {}):  # as the harness gives it, and as its reference test does
        if own:
            assert search.default_path(folder.name, "ogbg", official=True) is None
            module.check_hyperparameters(none, 10_000)
        else:
            with pytest.raises(
                ValueError, match=r"^no hyperparameters: run with --tuning_ruleset=external and a --tuning_"
            ):
                module.check_hyperparameters(none, 10_000)


@pytest.mark.parametrize("framework", ["pytorch", "jax"])
def test_the_point_is_that_of_the_published_baseline(framework):
    published = json.loads(Path("tuning_search_spaces/nadamw.json").read_text())[4]
    assert published.pop("label_smoothing") == 0.0
    points = {
        name: importlib.import_module(f"submissions.{framework}.{name}_self.submission").recipe.point
        for name in ("nadamw", "lawa", "ema")
    }
    assert points["nadamw"] == published
    assert points["lawa"] == points["ema"] == {**published, "averaging_horizon": 0.01, "averaging_window": 20}


def test_rulesets_and_search_spaces_that_do_not_go_together():
    assert search.trials("self", None, None) == search.trials("self", None, 1) == [None]
    for arguments, message in [
        (("self", "x.json", None), "--tuning_search_space cannot be given with --tuning_ruleset=self"),
        (("self", None, 2), "--num_tuning_trials=2: a self-tuning submission has one trial"),
        (("external", None, 1), "--tuning_search_space must be given with --tuning_ruleset=external"),
    ]:
        with pytest.raises(UsageError, match=message):
            search.trials(*arguments)


def test_a_suite_runs_them_without_a_search_space_and_one_of_either_kind(tmp_path):
    flags = ["--workloads=mini_imagenet_vit", "--max_global_steps=20", "--jobs=1", f"--experiment_dir={tmp_path}"]
    result = command("suite", *flags, "--submissions=lawa_self")
    assert result.returncode == 0, result.stderr
    (table,) = tmp_path.glob("lawa_self/study_0/*/trial_1/eval_measurements.csv")
    assert list(pd.read_csv(table)["global_step"]) == [1, 10, 20]
    assert not list(tmp_path.rglob("hparams.json"))
    (tmp_path / "tuned_trials.json").write_text("{}")
    result = command("suite", *flags, "--submissions=nadamw", f"--search_spaces={tmp_path}")
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert f"{tmp_path} has no nadamw.json, and without one: no hyperparameters" in result.stderr


def test_a_sweep_has_one_trial_of_one_and_a_half_budgets(tmp_path):
    flags = ["--submission=lawa_self", "--workloads=ogbg", "--studies=2", "--gpus=8", f"--experiment_dir={tmp_path}"]
    result = command("sweep", *flags, "--dry_run")
    assert result.returncode == 0, result.stderr
    *jobs, each, total = result.stdout.splitlines()
    expected = sweep.cost("ogbg", 8, {"averaging_window": 20})
    cost = sweep.text_of([sweep.Cost(1.5 * expected.hours, expected.gigabytes)])
    assert jobs == [f"ogbg-lawa_self-study_{study}-trial_1: {cost}" for study in (1, 2)]
    assert "--tuning_ruleset=self" in each
    assert not {flag for flag in each.split() if flag.startswith(("--tuning_search", "--num_tuning", "--hparam"))}
    assert total.startswith("2 of 2 jobs to run")


def test_an_official_run_is_given_the_ruleset_alone():
    result = command("run", "--harness=official", "--submission=lawa_self", "--workload=ogbg", "--gpus=4", "--dry_run")
    assert result.returncode == 0, result.stderr
    assert "--tuning_ruleset=self" in result.stdout.split()
    assert "search_space" not in result.stdout
    assert "num_tuning_trials" not in result.stdout
