"""What `weight-averaging plan` says of sharded models: by hand, and as measured on ranks in processes of their own."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.weight_averaging.cli.test_command import command
from tests.weight_averaging.torch.test_ranks import of_meshes, run
from weight_averaging.cli.costs import Machine, Run, cost, places, whole_file


def test_shards_by_hand():
    run_ = Run(params=1600, dtype_bytes=2, ranks=16, window=4, interval=10)
    assert [replace(run_, zero=zero).weights for zero in range(4)] == [1600, 1600, 1600, 100]
    assert [replace(run_, zero=zero, tensor_parallel=4).weights for zero in range(4)] == [400, 400, 400, 100]
    assert (
        replace(run_, shards=2, tensor_parallel=4).weights == replace(run_, shards=2, zero=3, tensor_parallel=4).weights
    )
    assert places(replace(run_, zero=3), Machine()) == places(replace(run_, shards=16), Machine())
    tensor = replace(run_, tensor_parallel=4)
    assert cost("lawa", "device", tensor, Machine()).device == 4 * 400 * 5
    assert cost("lawa", "host", tensor, Machine()).host == 8 * 4 * 400 * 5  # each rank has its own, replicas too
    slow = Machine(network_gbs=1e-9, pcie_gbs=1e-9)  # a byte a second
    assert whole_file(replace(run_, zero=3), slow) == pytest.approx(3200 * 15 / 16 + 3200)
    assert whole_file(run_, slow) == 3200


def test_masters_that_are_gathered_by_hand():
    run_ = Run(params=1600, dtype_bytes=2, ranks=16, window=4, interval=10)
    machine = Machine(network_gbs=1e-9)
    for zero in (1, 2):
        whole, plain = (cost("lawa", "device", replace(run_, zero=z), machine) for z in (zero, 0))
        assert whole.device == plain.device + 6400
        assert whole.gathered == 2 * 6400 * 15 / 16
        assert whole.exposed == pytest.approx(whole.gathered)
        assert whole.swap - plain.swap == pytest.approx(whole.gathered)
        assert cost("ema", "device", replace(run_, zero=zero), machine).gathered == 2 * whole.gathered
        float32 = replace(run_, zero=zero, dtype_bytes=4)
        assert places(float32, machine) == places(replace(float32, zero=0), machine)
    tensor = replace(run_, zero=1, tensor_parallel=4)
    assert cost("lawa", "device", tensor, machine).gathered == 2 * 1600 * 3 / 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--zero=4"], "error: zero must be 0, 1, 2 or 3, not 4"),
        (["--zero=1", "--shards=2"],
         "error: zero=1 leaves the weights whole on each rank: give shards, or zero=3, or neither"),
        (["--tensor-parallel=3"], "error: tensor_parallel must divide ranks: 4 ranks are no multiple of 3"),
        (["--tensor_parallel=0"], "error: tensor_parallel must be >= 1, not 0"),
        (["--tensor_parallel=2", "--shards=4"],
         "error: shards must divide ranks: 2 ranks (of 4, by tensor_parallel) are no multiple of 4 shards"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named(capsys, arguments, said):
    assert command(capsys, "plan", "--params=1e9", "--step-seconds=1", "--ranks=4", *arguments).strip() == said


def test_the_command_says_what_is_gathered(capsys):
    said = command(capsys, "plan", "--params=7B", "--dtype=bf16", "--ranks=64", "--zero=1", "--step_seconds=1")
    assert "64 ranks, ZeRO-1;" in said
    assert (
        "A snapshot of the LAWA waits 2.21 s for\n55.1 GB from other ranks, one of the EMA 4.41 s for 110 GB." in said
    )
    assert "whole average" not in said
    said = command(
        capsys,
        "plan",
        "--params=7B",
        "--dtype=bf16",
        "--ranks=64",
        "--zero=3",
        "--tensor-parallel=8",
        "--step_seconds=1",
    )
    assert "64 ranks, 8 shards, tensor parallel over 8;" in said
    assert "A whole average (save_average) is on the first rank after 1.11 s.\n" in said
    assert "gathered" not in said


@of_meshes
@pytest.mark.parametrize(
    ("ranks", "kinds"), [(2, ["replicas", "fsdp2", "tensor"]), (4, ["fsdp2", "fsdp2_tensor", "hsdp"])]
)
def test_bytes_of_each_rank_are_those_that_were_measured(tmp_path, ranks, kinds):
    run(ranks, tmp_path, *(f"bytes_a_rank:{kind}" for kind in kinds), module="plan_checks")


@pytest.mark.trainers
def test_what_deepspeed_gathers_is_what_plan_says():
    pytest.importorskip("deepspeed")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [*launch, "-m", "tests.processes.deepspeed_ranks", "gathered:1", "gathered:2"],
        capture_output=True, text=True, cwd=root, env=environment, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert done.stdout.count("as expected") == 2
