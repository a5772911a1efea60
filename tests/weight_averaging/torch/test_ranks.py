"""Averaging on several ranks, in processes of their own (the checks are in rank_checks.py)."""

import os
import subprocess

import pytest
import torch.distributed

from tests.support.warm_python import python

of_meshes = pytest.mark.skipif(
    not torch.distributed.is_available() or torch.__version__.startswith("2.5."),
    reason="torch 2.5 shards no tensor over two dimensions of a mesh that they do not divide",
)


def run(ranks: int, folder, *checks: str, module: str = "rank_checks") -> None:
    result = subprocess.run(
        [python(), "-m", f"tests.processes.{module}", str(ranks), str(folder), *checks],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "ranks agree" in result.stdout


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_trap_13_replicas_share_one_window_and_shards_go_from_four_ranks_to_two(tmp_path):
    run(4, tmp_path, "replicas", f"shards_save:{tmp_path}/full:7", f"shards_save:{tmp_path}/part:3")
    run(2, tmp_path, "replicas", f"shards_load:{tmp_path}/full:7", f"shards_load:{tmp_path}/part:3")
    run(2, tmp_path, "replicas:later")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_ranks_without_an_element_and_a_host_ema_of_replicas(tmp_path):
    run(2, tmp_path, "empty_shards", "host_ema_of_replicas")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_the_memory_of_the_ranks_of_a_machine_adds_up(tmp_path):
    run(2, tmp_path, "memory_of_ranks")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_snapshots_of_shards_are_whole(tmp_path):
    run(2, tmp_path, f"snapshots_of_shards:{tmp_path}")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_fsdp1(tmp_path):
    run(2, tmp_path, "fsdp1")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_replicas_evaluate_the_same_batch_norm_statistics(tmp_path):
    run(2, tmp_path, "statistics_of_replicas:auto", "statistics_of_replicas:host")


@of_meshes
def test_every_mesh_is_averaged_as_the_whole_model_and_goes_from_four_ranks_to_two_to_three(tmp_path):
    kinds = ["fsdp2", "tensor", "fsdp2_tensor", "hsdp", "tensor_of_replicas", "two_meshes"]
    run(4, tmp_path, *(f"average_and_save:{kind}:{tmp_path}" for kind in kinds), module="mesh_checks")
    run(2, tmp_path, f"go_on:fsdp2_tensor:fsdp2:{tmp_path}", f"go_on:tensor:tensor:{tmp_path}", module="mesh_checks")
    run(
        3,
        tmp_path,
        f"go_on:fsdp2_tensor_then:tensor:{tmp_path}",
        f"go_on:tensor_then:fsdp2:{tmp_path}",
        module="mesh_checks",
    )


@of_meshes
def test_the_whole_average_of_shards_comes_to_the_first_rank_and_into_files_part_by_part(tmp_path):
    kinds = ["fsdp2", "tensor", "fsdp2_tensor", "hsdp"]
    run(4, tmp_path, *(f"whole_on_the_first_rank:{kind}:{tmp_path}" for kind in kinds), module="mesh_checks")


@of_meshes
def test_states_that_one_rank_writes_come_back_to_every_mesh(tmp_path):
    kinds = ["fsdp2", "tensor", "fsdp2_tensor", "hsdp"]
    run(4, tmp_path, *(f"through_the_first_rank:{kind}" for kind in kinds), module="mesh_checks")
    run(4, tmp_path, *(f"as_the_first_rank_pickled_it:{kind}" for kind in kinds), module="mesh_checks")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_a_rank_that_does_not_come_or_dies_leaves_the_others_whole(tmp_path):
    run(2, tmp_path, "a_rank_that_does_not_come", module="mesh_checks")
    run(2, tmp_path, f"a_rank_that_dies_while_the_average_is_saved:{tmp_path}", module="mesh_checks")
