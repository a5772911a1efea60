"""What is checked before a run under the official harness: data, lists of images, the installed harness, GPUs."""

import functools
import importlib.util
import json
import os
import shlex
import subprocess
from types import SimpleNamespace

import pytest

from launching import official
from launching.official_workloads import WORKLOADS, needs_of
from tests.launching.test_official_command import run
from tests.support.warm_python import python
from weight_averaging.errors import UsageError

OF_2026 = "WORKLOADS = {\n  'ogbg': {\n  'finewebedu_lm': {\n"
OF_2025 = "WORKLOADS = {\n  'ogbg': {\n"


def make_data(root, needs):
    for pattern in needs.contents:
        path = root / needs.folder / pattern.replace("*", "0")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize("framework", ["pytorch", "jax"])
@pytest.mark.parametrize("workload", WORKLOADS)
def test_whole_data_passes_and_every_missing_piece_is_named(workload, framework, tmp_path):
    needs = needs_of(workload, framework)
    with pytest.raises(UsageError, match=r"there is no folder .*make it with: python dataset/dataset_setup.py"):
        official.check_data(workload, str(tmp_path), framework)
    make_data(tmp_path, needs)
    official.check_data(workload, str(tmp_path), framework)
    official.check_data(f"{workload}_variant", str(tmp_path), framework)
    for pattern in needs.contents:
        path = tmp_path / needs.folder / pattern.replace("*", "0")
        path.unlink()
        with pytest.raises(UsageError) as error:
            official.check_data(workload, str(tmp_path), framework)
        assert f"lacks {pattern};" in str(error.value)
        path.touch()


def test_a_checkpoint_that_the_harness_cannot_restore_in_jax_is_named(tmp_path):
    trials = [tmp_path / f"trial_{number}" for number in (1, 2)]
    for trial in trials:
        trial.mkdir()
        (trial / "checkpoint_5").touch()
    official.check_jax_checkpoints([*trials, tmp_path / "trial_3"])
    (trials[1] / "checkpoint_9").mkdir()  # Orbax's are folders
    official.check_jax_checkpoints(trials[:1])
    with pytest.raises(
        UsageError, match=r"cannot restore .*trial_2/checkpoint_9.*start anew with --overwrite"
    ) as error:
        official.check_jax_checkpoints(trials)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("check", "arguments", "words"),
    [
        (official.check_batch_size, ("ogbg", 3), "the batch of 512 on ogbg does not divide by it"),
        (official.check_batch_size, ("criteo1tb_embed_init", 7), "the batch of 262144"),
        (official.check_seed, (0,), "takes 0 for none"),
    ],
)
def test_bad_input_is_one_line(check, arguments, words):
    with pytest.raises(UsageError, match=words) as error:
        check(*arguments)
    assert "\n" not in str(error.value)


def test_gpus_found(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert [official.gpus_found(asked) for asked in (None, 2, 0)] == [4, 2, 0]
    with pytest.raises(UsageError, match="only 4 found"):
        official.gpus_found(8)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(UsageError, match="no GPU found"):
        official.gpus_found(None)


@pytest.mark.parametrize(
    ("runner", "registry", "words"),
    [
        (None, None, "not installed"),
        ("def train_once(): ...", OF_2026, "too old"),
        ("prepare_for_eval = None", OF_2026, "unknown to the installed algoperf; it has ogbg, finewebedu_lm"),
        ("prepare_for_eval = None", OF_2025, "from before 2026, with budgets of 8 x V100: .*--harness_path=/"),
    ],
)
def test_the_installed_harness_is_looked_at(runner, registry, words, tmp_path, monkeypatch):
    pretend_installed(runner, registry, tmp_path, monkeypatch)
    with pytest.raises(UsageError, match=words) as error:
        official.check_harness("mnist")
    assert "\n" not in str(error.value)


def test_another_commit_of_the_harness_is_told(tmp_path, monkeypatch):
    pretend_installed("prepare_for_eval = None", OF_2026, tmp_path, monkeypatch)
    noted = ""
    monkeypatch.setattr(
        "importlib.metadata.distribution", lambda name: SimpleNamespace(read_text=lambda file: noted or None)
    )
    assert official.check_harness("ogbg") == ""  # from a folder
    for commit, told in (("58491177aa", "the installed algoperf is of commit 58491177;"), (official.COMMIT, "")):
        noted = json.dumps({"vcs_info": {"vcs": "git", "commit_id": commit}})
        note = official.check_harness("ogbg")
        assert note.startswith(told)
        assert bool(note) == bool(told)
        assert official.check_harness("ogbg", tmp_path) == ""


def test_a_harness_of_before_2026_runs_where_its_path_is_given(tmp_path, monkeypatch):
    pretend_installed("prepare_for_eval = None", OF_2025, tmp_path, monkeypatch)
    with pytest.raises(UsageError, match="from before 2026"):
        official.check_harness("ogbg")
    assert "budgets of 8 x V100" in official.check_harness("ogbg", tmp_path)
    with pytest.raises(UsageError, match="--workload=finewebedu_lm is unknown to --harness_path="):
        official.check_harness("finewebedu_lm", tmp_path)
    with pytest.raises(UsageError, match="no sources of the harness"):
        official.check_harness("ogbg", tmp_path / "algoperf")
    (tmp_path / "algoperf" / "__init__.py").write_text("from ._version import version as __version__")
    with pytest.raises(UsageError, match=r"cannot be imported: echo .* > .*/algoperf/_version.py"):
        official.check_harness("ogbg", tmp_path)
    (tmp_path / "algoperf" / "_version.py").write_text("version = 'checkout'")
    official.check_harness("ogbg", tmp_path)
    result = run("--workload=ogbg", "--gpus=2", "--dry_run", f"--harness_path={tmp_path}")
    assert shlex.split(result.stdout)[0] == f"PYTHONPATH={os.getcwd()}:{tmp_path}"
    result = run("--workload=ogbg", "--engine=docker", "--dry_run", f"--harness_path={tmp_path}")
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "HARNESS_COMMIT" in result.stderr


def image_lists(working, folder):
    """As the harness leaves them in the working directory after a run on this folder."""
    for split, name in (("train", "train"), ("eval_train", "train"), ("validation", "val")):
        files = sorted((folder / name).glob("*/*"))
        classes = sorted(path.name for path in (folder / name).iterdir())
        samples = [(str(path.relative_to(folder / name)), classes.index(path.parent.name)) for path in files]
        (working / f".imagenet_{split}_cache_index.json").write_text(
            json.dumps({"classes": classes, "class_to_idx": {}, "samples": samples})
        )


def test_a_list_of_images_of_another_data_set_is_named(tmp_path):
    working, root = tmp_path / "working", tmp_path / "data"
    folder = root / "imagenet" / "pytorch"
    for split, count in (("train", 6), ("val", 3)):
        for number in range(count):
            path = folder / split / f"n{number % 3}" / f"{number}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    working.mkdir()
    check = functools.partial(official.check_image_lists, "imagenet_vit", str(root), "pytorch", working)
    check()
    image_lists(working, folder)
    check()
    (folder / "train" / "n0" / "new.JPEG").touch()
    with pytest.raises(UsageError, match=r"\.imagenet_train_cache_index.json lists other images.*remove it") as error:
        check()
    assert "\n" not in str(error.value)
    official.check_image_lists("imagenet_vit", str(root), "jax", working)
    official.check_image_lists("ogbg", str(root), "pytorch", working)
    image_lists(working, folder)
    check()
    (folder / "val" / "n3").mkdir()
    with pytest.raises(UsageError, match="imagenet_validation_cache_index"):
        check()
    image_lists(working, folder)
    (working / ".imagenet_eval_train_cache_index.json").write_text('{"classes"')
    with pytest.raises(UsageError, match="imagenet_eval_train_cache_index"):
        check()


def pretend_installed(runner, registry, tmp_path, monkeypatch):
    """An algoperf of these two sources; with `runner` None, none."""
    (tmp_path / "algoperf" / "workloads").mkdir(parents=True)
    (tmp_path / "algoperf" / "__init__.py").touch()
    (tmp_path / "algoperf" / "workloads" / "workloads.py").write_text(registry or "")
    (tmp_path / "submission_runner.py").write_text(runner or "")

    def find_spec(name):
        path = tmp_path / ("submission_runner.py" if name == "submission_runner" else "algoperf/__init__.py")
        search = None if name == "submission_runner" else [str(path.parent)]
        return importlib.util.spec_from_file_location(name, path, submodule_search_locations=search) if runner else None

    monkeypatch.setattr("importlib.util.find_spec", find_spec)


def test_an_official_workload_without_the_official_harness_is_told_so(tmp_path):
    for workload in ("ogbg", "criteo1tb_embed_init"):
        command = [python(), "-m", "scripts.run", f"--workload={workload}", "--submission=lawa"]
        result = subprocess.run([*command, f"--experiment_dir={tmp_path}"], capture_output=True, text=True, check=False)
        assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
        assert "is one of the official harness: add --harness=official" in result.stderr
    assert list(tmp_path.iterdir()) == []
