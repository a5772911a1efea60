"""Bad input gets one clear line, before any training."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from miniperf import search, submission
from tests.support.warm_python import python
from weight_averaging.errors import UsageError


def run_cli(*arguments: str, cwd: str | None = None) -> subprocess.CompletedProcess:
    command = [python(), "-m", "scripts.run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--workload=mini_imagnet"],
            "--workload=mini_imagnet is unknown; choose from mini_criteo1tb, mini_fastmri",
        ),
        (["--submission=lawaa"], "--submission=lawaa is unknown; choose from adamw,"),
        (["--submission_path=nowhere.py"], "--submission_path=nowhere.py does not exist below"),
        (["--num_tuning_trials=0"], "--num_tuning_trials must be >= 1, not 0"),
    ],
)
def test_the_command_line_says_what_is_wrong(tmp_path, arguments, message):
    base = ["--submission=lawa", "--workload=mini_imagenet_vit", f"--experiment_dir={tmp_path}"]
    result = run_cli(*base, *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_an_existing_experiment_is_not_touched_unasked(tmp_path):
    base = ["--submission=nadamw", "--workload=mini_imagenet_vit", f"--experiment_dir={tmp_path}"]
    base += ["--max_global_steps=2", "--eval_every_n_steps=1"]
    assert run_cli(*base).returncode == 0
    again = run_cli(*base)
    assert again.returncode == 2
    assert "continue it with --resume_last_run, or replace it with --overwrite" in again.stderr
    assert run_cli(*base, "--resume_last_run").returncode == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is not JSON"),
        ("[]", "and not empty"),
        ("3", "must be a list of points or a dict of ranges"),
        ('[{"a": 1}, {"b": 1}]', "point 2 and point 1 do not both have a, b"),
        ('[{"a": 1}, 3]', "point 2 must be a dict"),
        ('{"a": {"min": 1, "max": 2, "scaling": "exp"}}', 'the scaling of a must be "linear" or "log", not \'exp\''),
        ('{"a": {"min": 1, "max": 2}}', "a lacks scaling"),
        ('{"a": {"min": 0, "max": 2, "scaling": "log"}}', "must be > 0 for log scaling"),
        ('{"a": {"min": 3, "max": 2, "scaling": "linear"}}', "min <= max"),
        ('{"a": {"feasible_points": 3}}', "must be a list that is not empty"),
        ('{"a": 3}', "not 3"),
    ],
)
def test_a_bad_search_space_is_named(tmp_path, text, message):
    path = tmp_path / "space.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"space\.json") as error:
        search.load(path, 3)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_more_trials_than_a_list_has_are_told(caplog):
    path = "tuning_search_spaces/miniperf/lawa.json"
    everything = search.load(path, None)
    assert search.load(path, 6) == everything
    assert not caplog.messages
    assert search.load(path, 7) == search.load(path, 7) == everything
    assert caplog.messages == [f"--num_tuning_trials=7: {path} has 6 points, and all are run"]


def test_a_halton_space_is_seeded_and_inside_its_ranges(tmp_path):
    path = tmp_path / "space.json"
    space = {"a": {"min": 1e-4, "max": 1e-2, "scaling": "log"}, "b": {"feasible_points": [1, 2, 3]}}
    path.write_text(json.dumps(space))
    trials = search.load(path, 64, seed=1)
    assert trials == search.load(path, 64, seed=1)
    assert trials != search.load(path, 64, seed=2)
    logs = np.log10([t.a for t in trials])
    assert -4 <= logs.min() < -3.8
    assert -2.2 < logs.max() <= -2
    assert abs(logs.mean() + 3) < 0.1
    assert {t.b for t in trials} == {1, 2, 3}


def test_submissions_are_checked_when_loaded(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="is absolute"):
        submission.load("/submissions/x.py")
    with pytest.raises(UsageError, match=r"must be a \.py file below"):
        submission.load("../x.py")
    monkeypatch.chdir(tmp_path)
    Path("incomplete_submission.py").write_text("def update_params(): ...\n")
    with pytest.raises(UsageError, match="lacks the function init_optimizer_state, data_selection, get_batch_size"):
        submission.load("incomplete_submission.py")


def test_a_submission_that_cannot_be_imported_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("of_others").mkdir()
    Path("of_others/wanting.py").write_text("import there_is_none.part\n")
    Path("of_others/failing.py").write_text("import os\n\nraise AssertionError('not compiled with\\nCUDA')\n")
    with pytest.raises(UsageError, match=r"^of_others/wanting\.py imports there_is_none, .* the package that has it$"):
        submission.load("of_others/wanting.py")
    Path("of_others/requirements.txt").touch()
    with pytest.raises(UsageError, match=r"imports there_is_none, .* not installed: see of_others/requirements\.txt$"):
        submission.load("of_others/wanting.py")
    says = r"^of_others/failing\.py fails while it is imported: AssertionError: not compiled with CUDA \(.*g\.py:3\)$"
    with pytest.raises(UsageError, match=says):
        submission.load("of_others/failing.py")
