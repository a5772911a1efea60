"""What a command must not wait for: a wrong flag is told before a framework, a table or a plot is imported."""

import subprocess
import sys

import pytest

from tests.support.warm_python import python

SLOW = {"torch", "jax", "scipy", "pandas", "matplotlib", "tensorboard"}
RUN = ["scripts.run", "--submission=lawa"]


@pytest.mark.parametrize(
    ("arguments", "says", "slow"),
    [
        ([*RUN, "--workload=nope"], "--workload=nope is unknown; choose from mini_criteo1tb,", set()),
        ([*RUN], "--workload must be given", set()),
        ([*RUN, "--workload=mini_wmt", "--max_global_steps=0"], "flag --max_global_steps=0: 0 is not a posit", set()),
        ([*RUN, "--workload=mini_wmt", "--max_global_steps=-5"], "flag --max_global_steps=-5: -5 is not a", set()),
        ([*RUN, "--workload=mini_wmt", "--max_global_step=5"], "'max_global_step'. Did you mean: max_global_st", set()),
        ([*RUN, "--workload=mini_wmt", "--tuning_search_space=no.json"], "no.json: No such file or direct", set()),
        (["miniperf.submission_runner", "--max_global_steps=0"], "0 is not a positive integer", set()),
        (["miniperf.submission_runner", "--workload=nope"], "--submission_path must be given", set()),
        (["scripts.suite", "--workloads=nope"], "--workload=nope is unknown; choose from mini_criteo1tb,", set()),
        (["scripts.suite", "some"], "unexpected arguments: some", set()),
        (["miniperf.submission_runner", "some"], "unexpected arguments: some", set()),
        ([*RUN, "--workload=mini_wmt", "--hparam_start_index=9"], "leave none of the 6 trials", set()),
        (
            [*RUN, "--workload=mini_wmt", "--max_global_steps=9", "--gpus=2"],
            "--gpus: for --harness=official alone",
            set(),
        ),
        (["scripts.run"], "--submission must be given (name of a submission,", set()),
        (["scripts.sweep"], "for example: python -m scripts.sweep --submission=lawa --workloads=ogbg,wmt", set()),
        (["scripts.prepare_text"], "--out must be given (", set()),
        (["scripts.score"], "--logs must be given (folders or .tar.xz archives of run logs,", set()),
        (
            [*RUN, "--framework=jax", "--submission=soap", "--workload=mini_wmt"],
            "--submission=soap is unknown in jax: it is",
            set(),
        ),
        (
            ["scripts.sweep", "--submission=lawa", "--workloads=mini_wmt", "--run_flags=--max_global_stepz=3"],
            "--run_flags=--max_global_stepz=3: scripts.run has no such flag: did you mean --max_global_steps?",
            set(),
        ),
        (["scripts.check_submission"], "give --submission_path, --tuning_search_space, --subm", set()),
        (["scripts.suite", "--jobs=some"], "flag --jobs=some: invalid literal for int()", set()),
        (["scripts.sweep", "--submission=lawa", "--workloads=nope", "--harness=miniperf"], "=nope is unkn", set()),
        (["scripts.average_checkpoints", ".", "--lawa=windo=3"], "expected window=..., allow_partial=...", set()),
        (["scripts.report", "--x=hours"], "flag --x=hours: value should be one of <steps|seconds>", set()),
    ],
)
def test_a_wrong_flag_is_one_line_before_anything_slow_is_imported(arguments, says, slow):
    if "scripts.sweep" in arguments:
        pytest.importorskip("submitit")
    command = [sys.executable, "-X", "importtime", "-m", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    told = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert len(told) == 1
    assert told[0].startswith("error: ")
    assert says in told[0]
    imported = {line.split("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "runpy" in imported  # they are read right
    assert not imported & (SLOW - slow)


def test_a_refused_data_set_leaves_nothing(tmp_path):
    pytest.importorskip("torch")
    flags = [
        "--workload=finewebedu_lm_124m",
        "--submission=adamw_lawa",
        "--data_dir=/nope",
        f"--experiment_dir={tmp_path}/x",
    ]
    command = [python(), "-m", "scripts.run", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--data_dir=/nope: there is no such folder of tokenised text" in done.stderr
    assert not (tmp_path / "x").exists()
