"""Command lines of runs under the official harness. What needs `algoperf` itself is in test_official*.py."""

import os
import shlex
import subprocess
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from launching import disk_room, official
from launching.official_workloads import SEVEN, WORKLOADS, base_name
from submissions.recipe.batch_sizes import get_batch_size
from tests.support.warm_python import python
from weight_averaging.errors import UsageError


def run(*flags: str, **environment: str) -> subprocess.CompletedProcess:
    command = [python(), "-m", "scripts.run", "--harness=official", "--submission=lawa", *flags]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


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
    words = official.command("pytorch", "librispeech_conformer", "a/b.py", 4, "/data", "/runs", "x", {"rng_seed": 3})
    assert words[1:6] == ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc_per_node=4"]
    assert "--librispeech_tokenizer_vocab_path=/data/librispeech/spm_model.vocab" in words
    assert {"--torch_compile=false", "--rng_seed=3", "--data_dir=/data/librispeech"} <= set(words)
    words = official.command(
        "pytorch", "imagenet_resnet", "a/b.py", 1, "/data", "/runs", "x", {"resume_last_run": True}
    )
    assert words[1:3] == ["-m", "submission_runner"]
    assert {"--imagenet_v2_data_dir=/data/imagenet/pytorch", "--torch_compile=true", "--resume_last_run=true"} <= set(
        words
    )


def test_in_jax_one_process_has_all_gpus_and_checkpoints_are_in_flaxs_own_form():
    words = official.command("jax", "imagenet_resnet", "a/b.py", 4, "/data", "/runs", "x", {"rng_seed": 3})
    assert words[1:3] == ["-m", "submission_runner"]
    assert {"--framework=jax", "--data_dir=/data/imagenet/jax", "--imagenet_v2_data_dir=/data/imagenet/jax"} <= set(
        words
    )
    assert not [word for word in words if "torch" in word]
    form = {"FLAX_USE_ORBAX_CHECKPOINTING": "false"}
    assert official.environment("jax", 2, None) == {**form, "CUDA_VISIBLE_DEVICES": "0,1"}
    assert official.environment("jax", 2, "4,6,7") == {**form, "CUDA_VISIBLE_DEVICES": "4,6"}
    assert official.environment("jax", 0, "4") == {**form, "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    assert official.environment("pytorch", 2, "4,6") == {}


@pytest.mark.parametrize(
    ("words", "gpus", "says"),
    [
        (["fastmr", "lawa"], "all", "the workload fastmr is unknown; choose from criteo1tb fastmri finewebedu_lm"),
        (["ogbg", "lawaa"], "all", "the submission lawaa is unknown; it is the name of a folder"),
        (["ogbg", "lawa"], "x", "GPUS=x: give all, a number of GPUs, or 0 for the CPU"),
        (["criteo1tb_embed_init,mnist", "lawa,ema"], "2", None),
    ],
)
def test_the_script_of_the_image_checks_its_words(words, gpus, says):
    environment = {**os.environ, "DRY_RUN": "1", "GPUS": gpus}
    command = ["docker/run_workload.sh", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if says is None:
        assert done.stdout.startswith("docker run "), done.stderr
        return
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {says}")
    assert len(done.stderr.splitlines()) == 1


def test_variants_belong_to_the_longest_base_name():
    assert base_name("criteo1tb_embed_init") == "criteo1tb"
    assert base_name("librispeech_conformer_layernorm") == "librispeech_conformer"
    with pytest.raises(UsageError, match="unknown to the official harness"):
        base_name("criteo")


def test_help_shows_what_one_looks_for():
    shown = subprocess.run(
        [python(), "-m", "scripts.run", "--help"], capture_output=True, text=True, check=False
    ).stdout
    for flag in (
        "workload",
        "framework",
        "experiment_dir",
        "rng_seed",
        "data_dir",
        "[no]resume_last_run",
        "submission",
    ):
        assert f"\n  --{flag}: " in shown


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


def test_a_dry_run_needs_no_gpu_and_says_which_number_it_takes(tmp_path):
    nowhere = {"PATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    result = run("--workload=finewebedu_lm", "--dry_run", **nowhere)
    assert result.returncode == 0, result.stderr
    words = shlex.split(result.stdout)
    assert words[1:3] == ["-m", "submission_runner"]
    assert any(word.endswith("/fineweb_edu_10B") and word.startswith("--data_dir=") for word in words)
    assert "--gpus=N" in result.stderr
    result = run("--workload=finewebedu_lm", "--dry_run", "--gpus=4", **nowhere)
    assert "--nproc_per_node=4" in shlex.split(result.stdout)
    assert not result.stderr
    result = run("--workload=wmt", "--framework=jax", "--dry_run", "--gpus=4", **nowhere)
    words = shlex.split(result.stdout)
    assert words[0] == "FLAX_USE_ORBAX_CHECKPOINTING=false"
    assert {"--framework=jax", "--submission_path=submissions/jax/lawa/submission.py"} <= set(words)


def test_a_submission_that_cannot_tell_is_not_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.py").write_text("raise SystemExit('imported')")
    official.check_trials("other.py", "space.json", [None], "ogbg", "pytorch")
    (tmp_path / "asked.py").write_text("def check_hyperparameters(h, step_hint):\n    raise SystemExit('asked')")
    with pytest.raises(UsageError, match="lacks the function"):
        official.check_trials("asked.py", "space.json", [None], "ogbg", "pytorch")


def test_a_folder_without_room_is_named_before_the_start(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--experiment_dir=.*runs: .*file is no folder that can be written to"):
        disk_room.check("ogbg", str(tmp_path / "file" / "runs"), {}, own=True)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1e9))

    def check(workload, values, trials, own=True):
        point = None if values is None else namedtuple("Point", values)(**values)
        folders = [tmp_path / "runs" / f"trial_{number}" for number in range(1, trials + 1)]
        disk_room.check(workload, str(tmp_path / "runs"), dict.fromkeys(folders, point), own)

    plain, ema, lawa = {"beta2": 0.9}, {"averaging_decay": 0.9}, {"averaging_window": 20}
    check("ogbg", lawa, 3)  # each a window, raw weights, the weights and a moment
    check("ogbg", lawa, 9, own=False)
    check("criteo1tb", None, 0)
    check("criteo1tb_test", lawa, 9)
    for workload, values, trials, words in (
        ("criteo1tb", None, 1, "1 GB free, the checkpoint of criteo1tb takes 2.16 at least"),
        ("ogbg", lawa, 4, "1 GB free, the checkpoints of 4 trials of ogbg take 1.31 at least"),
        ("imagenet_resnet", plain, 5, "the checkpoints of 5 trials of imagenet_resnet take 1.02 at least"),
        ("imagenet_resnet", ema, 3, "the checkpoints of 3 trials of imagenet_resnet take 1.23 at least"),
    ):
        with pytest.raises(UsageError, match=words) as error:
            check(workload, values, trials)
        assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    (tmp_path / "runs" / "trial_2").mkdir(parents=True)
    (tmp_path / "runs" / "trial_2" / "checkpoint_9").touch()
    check("ogbg", lawa, 4)  # one of them is replaced


NINE_ON_A100 = {
    "criteo1tb": (262_144, 8915), "fastmri": (32, 2745), "finewebedu_lm": (64, 31_967),
    "imagenet_resnet": (1024, 49_918), "imagenet_vit": (1024, 64_292), "librispeech_conformer": (256, 43_680),
    "librispeech_deepspeech": (256, 36_949), "ogbg": (512, 11_303), "wmt": (128, 16_114),
}  # fmt: skip


def test_the_nine_workloads_of_the_benchmark_on_four_a100():
    assert {*WORKLOADS} - {"mnist"} == set(NINE_ON_A100) == {*SEVEN, "imagenet_resnet", "finewebedu_lm"}
    for name, (batch, seconds) in NINE_ON_A100.items():
        assert get_batch_size(name) == batch
        assert WORKLOADS[name].a100_seconds == seconds
        official.check_batch_size(name, 4)


def test_the_docker_page_has_every_workloads_folder_and_budgets():
    page = Path("docs/docker.md").read_text()
    for name, needs in WORKLOADS.items():
        if name == "mnist":
            continue
        row = next(line for line in page.splitlines() if line.startswith("|") and f"`{name}`" in line)
        assert f"`{needs.folder}`" in row
        row = next(line for line in page.splitlines() if line.startswith(f"| {name} |"))
        cells = [cell.strip() for cell in row.split("|")[2:-1]]
        budgets = [f"{seconds:,}" if seconds else "-" for seconds in (needs.a100_seconds, needs.v100_seconds)]
        assert cells == [f"{get_batch_size(name):,}", f"{needs.step_hint:,}", *budgets]


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
        (["--workload=ogbg", "--framework=jaxx"], "--framework=jaxx is unknown; choose from pytorch, jax"),
        (
            ["--workload=ogbg", "--framework=jax", "--submission_path=submissions/pytorch/lawa/submission.py"],
            "it is a submission in pytorch; run it with --framework=pytorch",
        ),
        (
            ["--workload=ogbg", "--submission_path=submissions/jax/lawa/submission.py"],
            "it is a submission in jax; run it with --framework=jax",
        ),
        (["--workload=ogbg", "--submission_path=no/such.py"], "--submission_path=no/such.py does not exist"),
        (["--workload=ogbg", "--hparam_start_index=5"], "leave none of the 5 trials"),
        (["--workload=ogbg", "--num_tuning_trials=0"], "--num_tuning_trials must be >= 1, not 0"),
        (["--workload=ogbg", "--tuning_search_space=no/such.json"], "--tuning_search_space=no/such.json: No such file"),
        # Before the harness loads any data, wherever it runs; nothing else is looked at first.
        *[
            (["--workload=criteo1tb", f"--engine={engine}", f"--tuning_search_space={space}"], f"{space} does not fit")
            for engine, space in (
                ("local", "tuning_search_spaces/nadamw.json"),
                ("docker", "tuning_search_spaces/paper/wmt/interval_x_decay.json"),
            )
        ],
        (
            ["--workload=ogbg", "--tuning_ruleset=self"],
            "--tuning_ruleset=self does not fit submissions/pytorch/lawa/submission.py: no hyperparameters: run with",
        ),
        (
            ["--workload=ogbg", "--submission=lawa_self", "--tuning_search_space=tuning_search_spaces/lawa.json"],
            "lawa_self/submission.py: trial 1: the submission has hyperparameters of its own: run with",
        ),
        (
            ["--workload=ogbg", "--submission=lawa_self", "--num_tuning_trials=2"],
            "a self-tuning submission has one trial",
        ),
    ],
)
def test_nothing_is_started_where_something_is_missing(flags, words, tmp_path):
    result = run(*flags, PATH=str(tmp_path))
    assert result.returncode == 2
    assert words in result.stderr.splitlines()[-1]
    assert not result.stdout
