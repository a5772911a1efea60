"""Command lines and checks of runs under the official harness. What needs `algoperf` itself is in test_official*.py."""

import importlib.util
import os
import shlex
import subprocess
import sys

import pytest
import torch

from launching import official
from launching.workloads import SEVEN, WORKLOADS, base_name
from miniperf.errors import UsageError


def run(*flags: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "scripts.run", "--harness=official", "--submission=lawa", *flags]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def make_data(root, workload):
    for pattern in WORKLOADS[workload].contents:
        path = root / WORKLOADS[workload].folder / pattern.replace("*", "0")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize("workload", WORKLOADS)
def test_whole_data_passes_and_every_missing_piece_is_named(workload, tmp_path):
    with pytest.raises(UsageError, match=r"there is no folder .*make it with: python datasets/dataset_setup.py"):
        official.check_data(workload, str(tmp_path))
    make_data(tmp_path, workload)
    official.check_data(workload, str(tmp_path))
    official.check_data(f"{workload}_variant", str(tmp_path))
    for pattern in WORKLOADS[workload].contents:
        path = tmp_path / WORKLOADS[workload].folder / pattern.replace("*", "0")
        path.unlink()
        with pytest.raises(UsageError) as error:
            official.check_data(workload, str(tmp_path))
        assert f"lacks {pattern};" in str(error.value)
        path.touch()


def test_half_written_checkpoints_are_removed_from_a_jobs_own_trials_only(tmp_path):
    trials = [tmp_path / f"trial_{number}" for number in (1, 2)]
    for trial in trials:
        trial.mkdir()
        torch.save({"x": torch.arange(1000)}, trial / "checkpoint_5")
        torn = (trial / "checkpoint_5").read_bytes()[:-100]
        (trial / "checkpoint_9").write_bytes(torn)
        (trial / "hparams.json").write_text("{}")
    assert official.remove_torn_checkpoints([trials[0], tmp_path / "trial_3"]) == [trials[0] / "checkpoint_9"]
    assert sorted(path.name for path in trials[0].iterdir()) == ["checkpoint_5", "hparams.json"]
    assert (trials[1] / "checkpoint_9").exists()


def test_the_setup_command_has_no_placeholder_left():
    assert not [name for name, needs in WORKLOADS.items() if "{root}" in needs.setup_command("/data")]
    assert "--data_dir=/data --librispeech --temp_dir=/data/tmp" in WORKLOADS["librispeech_conformer"].setup_command(
        "/data"
    )


def test_the_command_of_a_workload_has_its_own_flags():
    words = official.command("librispeech_conformer", "a/b.py", 4, "/data", "/runs", "x", {"rng_seed": 3})
    assert words[1:6] == ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc_per_node=4"]
    assert "--librispeech_tokenizer_vocab_path=/data/librispeech/spm_model.vocab" in words
    assert {"--torch_compile=false", "--rng_seed=3", "--data_dir=/data/librispeech"} <= set(words)
    words = official.command("imagenet_resnet", "a/b.py", 1, "/data", "/runs", "x", {"resume_last_run": True})
    assert words[1:3] == ["-m", "submission_runner"]
    assert {"--imagenet_v2_data_dir=/data/imagenet/pytorch", "--torch_compile=true", "--resume_last_run=true"} <= set(
        words
    )


def test_variants_belong_to_the_longest_base_name():
    assert base_name("criteo1tb_embed_init") == "criteo1tb"
    assert base_name("librispeech_conformer_layernorm") == "librispeech_conformer"
    with pytest.raises(UsageError, match="unknown to the official harness"):
        base_name("criteo")


@pytest.mark.parametrize(
    ("check", "arguments", "words"),
    [
        (official.check_batch_size, ("ogbg", 3), "the batch of 512 on ogbg does not divide by it"),
        (official.check_batch_size, ("criteo1tb_embed_init", 7), "the batch of 262144"),
        (official.check_seed, (0,), "takes 0 for none"),
        (official.search_space_size, ("no/such.json",), "No such file"),
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
        ("def train_once(): ...", "WORKLOADS = {}", "too old"),
        ("prepare_for_eval = None", "WORKLOADS = {\n  'ogbg': {\n", "unknown to the installed algoperf; it has ogbg"),
    ],
)
def test_the_installed_harness_is_looked_at(runner, registry, words, tmp_path, monkeypatch):
    (tmp_path / "algoperf" / "workloads").mkdir(parents=True)
    (tmp_path / "algoperf" / "__init__.py").touch()
    (tmp_path / "algoperf" / "workloads" / "workloads.py").write_text(registry or "")
    (tmp_path / "submission_runner.py").write_text(runner or "")

    def find_spec(name):
        path = tmp_path / ("submission_runner.py" if name == "submission_runner" else "algoperf/__init__.py")
        search = None if name == "submission_runner" else [str(path.parent)]
        return importlib.util.spec_from_file_location(name, path, submodule_search_locations=search) if runner else None

    monkeypatch.setattr("importlib.util.find_spec", find_spec)
    with pytest.raises(UsageError, match=words):
        official.check_harness("mnist")


def test_docker_commands_mount_data_and_results():
    for workload in (SEVEN[0], SEVEN[-1]):
        result = run(
            f"--workload={workload}", "--engine=docker", "--gpus=4", "--data_dir=/d", "--rng_seed=7", "--dry_run"
        )
        assert result.returncode == 0, result.stderr
        words = shlex.split(result.stdout)
        assert words[:2] == ["docker", "run"]
        assert words[words.index("--gpus") + 1] == "4"
        assert "/d:/data" in words
        inside = words[words.index("scripts.run") + 1 :]
        assert {f"--workload={workload}", "--submission=lawa", "--data_dir=/data", "--gpus=4", "--rng_seed=7"} <= set(
            inside
        )


def test_a_slurm_job_is_requeued_and_resumes():
    result = run("--workload=ogbg", "--engine=slurm", "--gpus=8", "--sbatch_args=--partition=gpu", "--dry_run")
    words = shlex.split(result.stdout)
    assert {"--job-name=ogbg-lawa-1", "--requeue", "--gpus-per-node=8", "--partition=gpu"} <= set(words)
    inner = shlex.split(words[words.index("--wrap") + 1])
    assert inner[-1] == "--resume_last_run"
    assert "--engine=slurm" not in inner


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--workload=ogbg", "--engine=docker"], "there is no docker here"),
        (["--workload=ogbg", "--engine=slurm", "--gpus=8"], "there is no Slurm here"),
        (["--workload=ogbg", "--engine=slurm"], "say how many --gpus"),
        (["--workload=nope"], "unknown to the official harness"),
        (["--workload=ogbg", "--gpus=0", "--rng_seed=0"], "takes 0 for none"),
        (["--workload=ogbg", "--gpus=1000"], "--gpus=1000: only"),
    ],
)
def test_nothing_is_started_where_something_is_missing(flags, words, tmp_path):
    result = run(*flags, PATH=str(tmp_path))
    assert result.returncode == 2
    assert words in result.stderr.splitlines()[-1]
    assert not result.stdout
