"""Another submission and its average, written as a folder: by the command, from files that somebody else wrote."""

import csv
import json
import subprocess
from pathlib import Path

import pytest
import yaml

from launching import average_submission, check_code
from tests.support import ROOT
from tests.support.warm_python import python
from weight_averaging.errors import UsageError

THEIRS = '''"""Plain gradient descent, as somebody else wrote it."""

import torch
from algoperf import spec


def get_batch_size(workload_name):
    return 256


def init_optimizer_state(workload, model_params, model_state, hyperparameters, rng):
    rate = 0.1 if hyperparameters is None else hyperparameters.learning_rate
    return {"optimizer": torch.optim.SGD(model_params.parameters(), lr=rate)}


def update_params(workload, current_param_container, current_params_types, model_state, hyperparameters, batch,
                  loss_type, optimizer_state, eval_results, global_step, rng):
    optimizer_state["optimizer"].zero_grad()
    logits, state = workload.model_fn(
        current_param_container, batch, model_state, spec.ForwardPassMode.TRAIN, rng, update_batch_norm=True)
    loss = workload.loss_fn(label_batch=batch["targets"], logits_batch=logits, mask_batch=batch.get("weights"))
    (loss["summed"] / loss["n_valid_examples"]).backward()
    optimizer_state["optimizer"].step()
    return optimizer_state, current_param_container, state


def data_selection(workload, input_queue, optimizer_state, current_param_container, model_state, hyperparameters,
                   global_step, rng):
    return next(input_queue)
'''


@pytest.fixture
def theirs(tmp_path) -> Path:
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "submission.py").write_text(THEIRS)
    (folder / "tuning_search_space.json").write_text('[{"learning_rate": 0.1}, {"learning_rate": 0.3}]')
    (folder / "submission_info.yml").write_text('authors: "A. Body"\naffiliations: "Some Place"\n')
    return folder


def command(folder: Path, name: str, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [python(), "-m", f"scripts.{name}", *flags],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_written_checked_and_run(tmp_path, theirs):
    done = command(
        tmp_path, "average_submission", "--submission_path=theirs/submission.py", "--averaging=lawa",
        "--out=made", "--tuning_search_space=theirs/tuning_search_space.json", "--averaging_window=4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = tmp_path / "made"
    assert (made / "base" / "submission.py").read_text() == THEIRS
    assert {path.name for path in made.iterdir() if path.is_dir()} == {
        "averaged",
        "base",
        "recipe",
        "weight_averaging",
    }
    notes = [f for f in check_code.check(made / "submission.py") if f.path.parent != made / "base"]
    assert notes == []
    assert "note, of the base itself: " in done.stdout
    space = json.loads((made / "tuning_search_space.json").read_text())
    assert space[1] == {"learning_rate": 0.3, "averaging_horizon": 0.01, "averaging_window": 4}
    info = yaml.safe_load((made / "submission_info.yml").read_text())
    assert info["authors"] == "A. Body"
    assert info["description"] == "theirs by A. Body, evaluated at the mean of its latest snapshots (LAWA)"
    assert info["authors"] in (tmp_path / "made.pull_request.md").read_text()
    (next_,) = [line for line in done.stdout.splitlines() if line.startswith("next: python -m scripts.run ")]
    flags = [word for word in next_.split() if word.startswith("--")]
    run = command(tmp_path, "run", *flags, "--max_global_steps=6", "--num_tuning_trials=1", "--experiment_name=x")
    assert run.returncode == 0, run.stderr
    assert "LAWA of" in run.stderr + run.stdout


@pytest.mark.parametrize("averaging", ["lawa", "growing"])
def test_run_without_being_written_first_and_resumed(tmp_path, theirs, averaging):
    flags = [
        "--submission_path=theirs/submission.py", "--tuning_search_space=theirs/tuning_search_space.json",
        f"--averaging={averaging}", "--workload=mini_criteo1tb", "--experiment_name=x", "--num_tuning_trials=1",
        "--eval_every_n_steps=3",
    ]  # fmt: skip
    first = command(tmp_path, "run", *flags, "--max_global_steps=6")
    assert first.returncode == 0, first.stderr
    (folder,) = (tmp_path / "dist" / "averaged").iterdir()
    assert folder.name.startswith(f"theirs_{averaging}_")
    again = command(tmp_path, "run", *flags, "--max_global_steps=9", "--resume_last_run")
    assert again.returncode == 0, again.stderr
    assert [path.name for path in (tmp_path / "dist" / "averaged").iterdir()] == [folder.name]
    (path,) = (tmp_path / "runs").rglob("trial_1/eval_measurements.csv")
    with path.open() as file:
        rows = [(int(row["global_step"]), int(row["preemption_count"])) for row in csv.DictReader(file)]
    assert rows == [(1, 0), (3, 0), (6, 0), (9, 1)]


def test_another_base_or_setting_is_another_folder(tmp_path, theirs):
    made = []
    for averaging, rate in (("lawa", "0.1"), ("ema", "0.1"), ("lawa", "0.2"), ("lawa", "0.1")):
        (theirs / "submission.py").write_text(THEIRS.replace("0.1 if", f"{rate} if"))
        base = average_submission.read(theirs / "submission.py")
        made.append(average_submission.write_to_run(ROOT, base, averaging, None, tmp_path / "averaged"))
    assert made[3] == made[0]
    assert len(set(made)) == 3
    assert sorted((tmp_path / "averaged").iterdir()) == sorted(set(made))


@pytest.mark.parametrize(
    ("flags", "message"),
    {
        ("--averaging=lawa", "--averaging_share=.2"): "--averaging_share: --averaging=lawa takes averaging_horizon and",
        (
            "--averaging=growing",
            "--averaging_window=3",
        ): "--averaging_window: --averaging=growing takes averaging_share",
        ("--out=Made-Here",): "--out=Made-Here: give the folder's own name, of small letters",
        ("--framework=jax",): "--submission_path=theirs/submission.py needs --framework=pytorch",
        ("--out=theirs",): "--out=theirs exists; remove it or choose another",
    }.items(),
)
def test_a_setting_of_another_average_is_one_line(tmp_path, theirs, flags, message):
    done = command(tmp_path, "average_submission", "--submission_path=theirs/submission.py", "--out=made", *flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize(
    ("text", "authors"),
    {
        'authors: ["A. Body", "B. Else"]': "A. Body, B. Else",
        'authors: "A. Body #1, `B`"': "A. Body 1, B",
        "- no\n- fields": None,
        "authors: [not: closed": None,
    }.items(),
)
def test_authors_of_the_base_are_named_however_they_are_written(theirs, text, authors):
    (theirs / "submission_info.yml").rename(theirs / "submissions_info.yaml")  # as some call it
    (theirs / "submissions_info.yaml").write_text(text)
    assert average_submission.read(theirs / "submission.py").info.get("authors") == authors


@pytest.mark.parametrize("averaging", ["lawa", "ema"])
def test_a_self_tuning_one_has_the_point_in_its_module(tmp_path, theirs, averaging):
    base = average_submission.read(theirs / "submission.py")
    values = {"averaging_horizon": 0.02, "averaging_window": 5}
    average_submission.write(ROOT, base, averaging, values, None, tmp_path / "made", {"on_top": True})
    text = (tmp_path / "made" / "submission.py").read_text()
    assert f"averaged(base, {averaging}, point={values!r}, on_top=True)" in text
    assert not (tmp_path / "made" / "tuning_search_space.json").exists()


def test_what_stands_beside_the_base_comes_along(tmp_path, theirs):
    (theirs / "rates.py").write_text("RATE = 0.1\n")
    (theirs / "submission.py").write_text(
        THEIRS.replace("import torch\n", "import torch\n\nfrom .rates import RATE\n", 1)
    )
    base = average_submission.read(theirs / "submission.py")
    average_submission.write(ROOT, base, "lawa", {}, None, tmp_path / "made", {})
    assert (tmp_path / "made" / "base" / "rates.py").read_text() == "RATE = 0.1\n"
    assert average_submission.changed(base, tmp_path / "made") == []


def test_data_and_requirements_beside_the_base_come_along(tmp_path, theirs):
    (theirs / "rates.txt").write_text("0.1")
    (theirs / "requirements.txt").write_text("einops\n")
    rate = 'open(__file__.replace("submission.py", "rates.txt")).read()'
    (theirs / "submission.py").write_text(THEIRS.replace("rate = 0.1", f"rate = float({rate})"))
    made = average_submission.write_to_run(
        ROOT, average_submission.read(theirs / "submission.py"), "lawa", None, tmp_path / "averaged"
    )
    assert (made / "base" / "rates.txt").read_text() == "0.1"
    assert (made / "requirements.txt").read_text() == "einops\n"


BAD = {
    "is no submission: it lacks update_params": ("def update_params", "def update_parameters"),
    "cannot be read as Python: line 4": ("from algoperf import spec", "from algoperf import"),
    "imports from above its folder": ("from algoperf import spec", "from ..somewhere import spec"),
    "imports neither torch alone nor JAX alone": ("import torch\n", ""),
}


@pytest.mark.parametrize("message", BAD)
def test_a_file_that_cannot_be_averaged_is_one_line(theirs, message):
    path = theirs / "submission.py"
    path.write_text(THEIRS.replace(*BAD[message], 1))
    with pytest.raises(UsageError, match=message):
        average_submission.read(path)


def test_one_that_imports_both_frameworks_is_of_the_one_that_is_named(theirs):
    path = theirs / "submission.py"
    path.write_text(THEIRS.replace("import torch\n", "import jax\nimport torch\n", 1))
    assert [average_submission.read(path, framework).framework for framework in ("pytorch", "jax")] == [
        "pytorch",
        "jax",
    ]
    path.write_text(THEIRS)
    assert average_submission.read(path, "jax").framework == "pytorch"


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"none\.py: there is no such file"):
        average_submission.read(tmp_path / "none.py")


def test_a_search_space_with_an_average_in_it(tmp_path):
    path = tmp_path / "space.json"
    path.write_text('[{"learning_rate": 1, "averaging_window": 3}]')
    with pytest.raises(UsageError, match="has averaging_window already: its submission averages itself"):
        average_submission.search_space(path, {})
    path.write_text('{"learning_rate": {"min": 1, "max": 2}}')
    assert average_submission.search_space(path, {"averaging_window": 3})["averaging_window"] == {
        "feasible_points": [3]
    }
    path.write_text("3")
    with pytest.raises(UsageError, match="neither a list of points nor ranges by name"):
        average_submission.search_space(path, {})
