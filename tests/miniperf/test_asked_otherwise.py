"""A run that is resumed with other settings than it began with does what is asked, or says in a line why it cannot."""

import json
import subprocess
from pathlib import Path

import pytest

from launching import official
from launching.sweep import Trial
from miniperf.logs import check_hyperparameters, write_hyperparameters
from tests.miniperf.test_runner import assert_same_end, settings_of, train, trial
from tests.support.warm_python import python
from weight_averaging.errors import UsageError

pytestmark = pytest.mark.usefixtures("few_held_out_images")


@pytest.mark.parametrize("name", ["nadamw", "lawa", "ema"])
def test_a_run_asked_for_more_updates_ends_as_one_of_that_length(tmp_path, name):
    hyperparameters = trial(tmp_path, name)
    for steps in (10, 20, 30):
        train(tmp_path / "grown", hyperparameters, settings_of(name, steps, every=5))
    train(tmp_path / "whole", hyperparameters, settings_of(name, 30, every=5))
    assert_same_end(tmp_path / "grown", tmp_path / "whole")


def test_a_run_asked_for_fewer_updates_than_it_has_ends_with_a_line(tmp_path):
    hyperparameters = trial(tmp_path, "nadamw")
    train(tmp_path / "t", hyperparameters, settings_of("nadamw", 10, every=5))
    train(tmp_path / "t", hyperparameters, settings_of("nadamw", 10, every=5))  # nothing is left to do
    with pytest.raises(
        UsageError, match="checkpoint_10 is of update 10, and training is to end at update 3: "
    ) as error:
        train(tmp_path / "t", hyperparameters, settings_of("nadamw", 3, every=5))
    assert "\n" not in str(error.value)


def test_a_run_that_stays_ended_says_why(tmp_path, capsys):
    hyperparameters = trial(tmp_path, "nadamw")
    train(tmp_path / "t", hyperparameters, settings_of("nadamw", 5, every=5))
    path = tmp_path / "t" / "checkpoint_5"
    import torch

    contents = torch.load(path, weights_only=True)
    contents["train_state"]["training_complete"] = True  # as a submission ends it, and as earlier versions did
    torch.save(contents, path)
    train(tmp_path / "t", hyperparameters, settings_of("nadamw", 9, every=5))
    said = capsys.readouterr().err
    assert said == f"{tmp_path / 't'}: ended at update 5, not at 9, because its training was complete\n"


def test_a_changed_search_space_is_refused_once_a_run_has_begun(tmp_path):
    space, folder = tmp_path / "space.json", tmp_path / "runs/x/mini_imagenet_vit_pytorch"
    point = {"learning_rate": 1e-2, "one_minus_beta1": 0.1, "beta2": 0.99, "weight_decay": 0.1, "warmup_factor": 0.02}
    command = [
        python(), "-m", "scripts.run", "--submission=nadamw", "--workload=mini_imagenet_vit", "--max_global_steps=2",
        f"--tuning_search_space={space}", f"--experiment_dir={tmp_path / 'runs'}", "--experiment_name=x",
        "--resume_last_run",
    ]  # fmt: skip

    def said(*points: dict[str, float]) -> tuple[int, str]:
        space.write_text(json.dumps(points))
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        return result.returncode, result.stderr

    assert said(point)[0] == 0
    code, line = said({**point, "learning_rate": 0.5})
    assert code == 2
    assert f"{folder / 'trial_1'} began with other hyperparameters" in line
    assert "learning_rate was 0.01 and is 0.5; restore the search space" in line
    code, line = said({**point, "dropout_rate": 0.1})
    assert code == 2
    assert "dropout_rate was not there and is 0.1" in line
    assert len(line.splitlines()) == 1
    # A later trial is looked at before any trains.
    assert said(point, {**point, "beta2": 0.9})[0] == 0
    before = sorted((folder / "trial_1").iterdir())
    code, line = said(point, {**point, "beta2": 0.8})
    assert code == 2
    assert "trial_2 began with" in line
    assert sorted((folder / "trial_1").iterdir()) == before


def test_hyperparameters_that_no_run_began_with_are_replaced(tmp_path):
    one, other = trial(tmp_path, "lawa"), trial(tmp_path, "ema")
    write_hyperparameters(tmp_path, one)
    check_hyperparameters(tmp_path, other)
    write_hyperparameters(tmp_path, other)
    assert json.loads((tmp_path / "hparams.json").read_text()) == other._asdict()


def test_a_suite_goes_on_to_more_updates_and_refuses_fewer(tmp_path):
    def suite(steps: int) -> subprocess.CompletedProcess:
        flags = ["--submissions=nadamw", "--workloads=mini_imagenet_vit", f"--max_global_steps={steps}"]
        command = [python(), "-m", "scripts.suite", f"--experiment_dir={tmp_path}", "--jobs=1", *flags]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert " of 10, target" in suite(10).stdout
    assert " of 20, target" in suite(20).stdout
    assert list(tmp_path.rglob("checkpoint_20"))
    fewer = suite(10)
    assert fewer.returncode == 2
    assert "has a run of 20 updates, more than the 10 asked for" in fewer.stderr


def sweep_trial(folder: Path, *flags: str) -> Trial:
    return Trial(
        framework="pytorch", submission="nadamw", workload="mini_imagenet_vit", seed=1, trials=[1], search_space=None,
        experiment_dir=folder, harness="miniperf", points=1, flags=flags,
    )  # fmt: skip


def test_a_job_of_a_sweep_is_finished_for_the_flags_that_it_ended_with(tmp_path):
    (tmp_path / "sweep").mkdir()
    job = sweep_trial(tmp_path, "--max_global_steps=3")
    assert not job.finished()
    job.mark_finished()
    assert job.finished()
    assert not sweep_trial(tmp_path, "--max_global_steps=4").finished()
    job.marker.write_text("")  # of an earlier version
    assert job.finished()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (5, None),
        (9, "ended at update 5 by an earlier --max_global_steps, and the harness cannot"),
        (None, "ended at update 5 by an earlier --max_global_steps"),
        (3, "is at update 5 already, beyond --max_global_steps=3"),
    ],
)
def test_the_official_harness_is_not_asked_for_what_it_would_ignore(tmp_path, asked, message):
    (tmp_path / "checkpoint_5").touch()
    (tmp_path / "flags_0.json").write_text(json.dumps({"max_global_steps": 5}))
    if message is None:
        official.check_resumed({tmp_path: None}, asked)
        return
    with pytest.raises(UsageError, match=message):
        official.check_resumed({tmp_path: None}, asked)
    (tmp_path / "flags_0.json").write_text(json.dumps({"max_global_steps": 100}))
    if asked != 3:
        official.check_resumed({tmp_path: None}, asked)  # it was killed at 5


def test_the_official_harness_is_not_resumed_with_another_search_space(tmp_path):
    hyperparameters = trial(tmp_path, "lawa")
    (tmp_path / "checkpoint_5").touch()
    write_hyperparameters(tmp_path, hyperparameters)
    official.check_resumed({tmp_path: hyperparameters}, None)
    with pytest.raises(UsageError, match=r"learning_rate was 0\.01 and is 0\.3"):
        official.check_resumed({tmp_path: hyperparameters._replace(learning_rate=0.3)}, None)
