"""Damaged checkpoints, full disks and read-only folders: told in one line, nothing lost, nothing half loaded."""

import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from miniperf import checkpoints
from miniperf.frameworks.pytorch import FRAMEWORK as PYTORCH
from tests.miniperf.test_runner import assert_same_end, leaves, settings_of, train, trial
from tests.support.warm_python import python
from weight_averaging.errors import UsageError

pytestmark = pytest.mark.usefixtures("few_held_out_images")
SMALL = {name: {} for name in checkpoints.CONTENTS} | {"model_params": {"w": torch.arange(64.0)}, "global_step": 5}


def settings(steps: int = 20):
    return settings_of("ema", steps=steps, every=5, keep_all=False)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, few_held_out_images):
    folder = tmp_path_factory.mktemp("unbroken")
    train(folder, trial(folder, "ema"), settings())
    return folder


def checkpoints_in(folder: Path) -> list[str]:
    """Checkpoints and whatever else there is of them."""
    return sorted(path.name for path in folder.iterdir() if "checkpoint" in path.name)


def test_no_flipped_bit_and_no_truncation_goes_unnoticed(tmp_path):
    """Each is found, or it is in a byte that means nothing and what is loaded is the same."""
    checkpoints.save(PYTORCH, tmp_path, 5, SMALL, keep_all=False)
    path = tmp_path / "checkpoint_5"
    whole, numbers = path.read_bytes(), random.Random(0)

    def is_found(contents: bytes) -> bool:
        path.write_bytes(contents)
        try:
            loaded = checkpoints.load_latest(PYTORCH, tmp_path, {})[1]
        except UsageError as error:
            said = str(error)
            return said.startswith(f"{path} is damaged (") and "\n" not in said
        assert all(torch.equal(loaded["model_params"][name], value) for name, value in SMALL["model_params"].items())
        assert str(leaves(loaded)) == str(leaves(SMALL))
        return False

    weights = whole.index(SMALL["model_params"]["w"].numpy().tobytes())
    for position in [weights, weights + 255, *numbers.sample(range(len(whole)), 500)]:
        contents = bytearray(whole)
        contents[position] ^= 1 << numbers.randrange(8)
        assert is_found(bytes(contents)) or not weights <= position < weights + 256, position
    for length in [0, 1, len(whole) - 1, *numbers.sample(range(len(whole)), 40)]:
        assert is_found(whole[:length]), length


def of_another_run(path: Path) -> None:
    contents = torch.load(path, weights_only=True)
    torch.save({**contents, "rng_seed": 4}, path)


def flipped(path: Path) -> None:
    contents = bytearray(path.read_bytes())
    weights = torch.load(path, weights_only=True)["model_params"]["head.weight"]
    contents[contents.index(weights.numpy().tobytes()) + 1] ^= 1
    path.write_bytes(contents)


def of_an_earlier_version(path: Path) -> None:
    contents = torch.load(path, weights_only=True)
    contents["random_state"]["torch"] = contents["random_state"].pop("framework")
    torch.save(contents, path)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: os.truncate(path, path.stat().st_size // 2), "is damaged (File is not a zip file)"),
    "empty": (lambda path: os.truncate(path, 0), "is damaged (File is not a zip file)"),
    "bit": (flipped, "is damaged (the checksum of archive/data/"),
    "foreign": (lambda path: torch.save({"model": torch.ones(3)}, path), "is not a checkpoint of a run"),
    "earlier version": (of_an_earlier_version, "is of an earlier version"),
    "other run": (of_another_run, "was written with rng_seed=4, not 3"),
    "renamed": (
        lambda path: shutil.copy(path.with_name("checkpoint_15"), path),
        "was written with global_step=15, not",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_previous_good_one_is_used(tmp_path, unbroken, damage, capfd):
    change, says = DAMAGES[damage]
    folder = tmp_path / "t"
    shutil.copytree(unbroken, folder)
    assert checkpoints_in(folder) == ["checkpoint_15", "checkpoint_20"]
    change(folder / "checkpoint_20")
    train(folder, trial(tmp_path, "ema"), settings())
    told = capfd.readouterr().err.splitlines()
    assert [line for line in told if says in line and f"{folder / 'checkpoint_20'} " in line] == told
    assert told[0].endswith(": renamed unusable_checkpoint_20, going on from checkpoint_15")
    assert len(told) == 1
    assert checkpoints_in(folder) == ["checkpoint_15", "checkpoint_20", "unusable_checkpoint_20"]
    assert_same_end(unbroken, folder)


def test_a_run_without_a_good_checkpoint_is_not_started_from_zero(tmp_path, unbroken, capfd):
    folder = tmp_path / "t"
    shutil.copytree(unbroken, folder)
    for name in ("checkpoint_15", "checkpoint_20"):
        os.truncate(folder / name, 1000)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UsageError, match=r"checkpoint_20 is damaged .*, and checkpoint_15 cannot be used .* from zero"):
        train(folder, trial(tmp_path, "ema"), settings())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    for name in ("checkpoint_15", "checkpoint_20"):
        (folder / name).unlink()
    train(folder, trial(tmp_path, "ema"), settings())
    assert "no checkpoint to go on from, starting from zero" in capfd.readouterr().err
    assert_same_end(unbroken, folder)


def error_of(function: Callable[..., object], *arguments: object) -> str:
    """The UsageError that it raises in a process of its own, where limits and rights may be changed."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def child() -> None:
        try:
            function(*arguments)
        except UsageError as error:
            sender.send(str(error))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert receiver.poll(), "it raised no UsageError"
    return receiver.recv()


def train_with_small_files(*arguments: object) -> None:
    """Fails where a full disk does, with another error number: between the sizes of the first two checkpoints."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_200_000, 1_200_000))
    train(*arguments)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, unbroken):
    folder, hyperparameters = tmp_path / "t", trial(tmp_path, "ema")
    said = error_of(train_with_small_files, folder, hyperparameters, settings())
    assert said == (
        f"{folder / 'checkpoint_5'}: File too large; make room there (it takes 1.4 MB) and go on with --resume_last_run"
    )
    assert checkpoints_in(folder) == ["checkpoint_1"]
    train(folder, hyperparameters, settings())
    assert_same_end(unbroken, folder)


def save_without_rights(folder: Path) -> None:
    os.chdir(folder)
    if os.geteuid() == 0:  # whom permissions do not bind
        os.setuid(65534)
    checkpoints.save(PYTORCH, Path("."), 10, SMALL, keep_all=False)


def test_a_read_only_folder_is_told(tmp_path):
    checkpoints.save(PYTORCH, tmp_path, 5, SMALL, keep_all=False)
    os.chmod(tmp_path, 0o555)
    said = error_of(save_without_rights, tmp_path)
    os.chmod(tmp_path, 0o755)
    assert said.startswith("checkpoint_10: Permission denied; grant the right to it")
    assert checkpoints_in(tmp_path) == ["checkpoint_5"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB: room for the first two checkpoints, 0.9 and 1.4 MB, and not for the third."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not shutil.which("mount") or subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", folder], capture_output=True, check=False
    ).returncode:  # fmt: skip
        pytest.skip("mounting a file system is not permitted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_and_a_read_only_disk(tmp_path, unbroken, small_disk):
    folder, hyperparameters = small_disk / "t", trial(tmp_path, "ema")
    said = error_of(train, folder, hyperparameters, settings())
    assert said.startswith(f"{folder / 'checkpoint_10'}: No space left on device; make room there")
    assert checkpoints_in(folder) == ["checkpoint_1", "checkpoint_5"]
    assert checkpoints.load_latest(PYTORCH, folder, {})[0].name == "checkpoint_5"
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    said = error_of(checkpoints.save, PYTORCH, folder, 10, SMALL, False)
    assert said.startswith(f"{folder / 'checkpoint_10'}: Read-only file system; make it writable")
    assert checkpoints_in(folder) == ["checkpoint_1", "checkpoint_5"]
    subprocess.run(["mount", "-o", "remount,rw,size=10m", small_disk], check=True)
    train(folder, hyperparameters, settings())
    assert_same_end(unbroken, folder)


@pytest.mark.skipif(torch.__version__.startswith("2.5"), reason="importing torch 2.5 writes larger files itself")
def test_the_command_ends_with_one_line_when_logs_cannot_be_written(tmp_path):
    command = [
        sys.executable, "-m", "scripts.run", "--submission=ema", "--workload=mini_imagenet_vit",
        f"--experiment_dir={tmp_path}", "--max_global_steps=2", "--eval_every_n_steps=1",
    ]  # fmt: skip
    result = subprocess.run(
        command, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600)),
    )  # fmt: skip
    assert result.returncode == 2
    file = tmp_path / "ema" / "study_0" / "mini_imagenet_vit_pytorch" / "trial_1" / "meta_data_0.json"
    *told, last = result.stderr.splitlines()
    assert last == f"error: {file}: File too large; make room there and go on with --resume_last_run"
    assert all(line.startswith("I") for line in told), told  # nothing but information


@pytest.mark.parametrize(
    "command",
    [
        ["scripts.run", "--submission=nadamw", "--save_intermediate_checkpoints"],
        ["miniperf.submission_runner", "--submission_path=submissions/pytorch/nadamw/submission.py",
         "--tuning_search_space=tuning_search_spaces/miniperf/nadamw.json", "--experiment_name=nadamw/study_0"],
    ],
)  # fmt: skip
def test_all_are_kept_if_asked_and_by_the_runner_of_the_official_flags(tmp_path, command):
    flags = ["--workload=mini_imagenet_vit", f"--experiment_dir={tmp_path}", "--max_global_steps=4"]
    flags += ["--eval_every_n_steps=1", "--num_tuning_trials=1"]
    subprocess.run([python(), "-m", *command, *flags], check=True, capture_output=True)
    trial = tmp_path / "nadamw/study_0/mini_imagenet_vit_pytorch/trial_1"
    assert checkpoints_in(trial) == [f"checkpoint_{step}" for step in (1, 2, 3, 4)]
