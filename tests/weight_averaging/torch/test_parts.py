"""Ranks with other tensors of one model, in processes of their own (the checks are in part_checks.py)."""

from pathlib import Path

import pytest

from tests.weight_averaging.torch.test_ranks import of_meshes, run

pytestmark = of_meshes


def of_parts(ranks: int, folder: Path, *checks: str) -> None:
    run(ranks, folder, *checks, module="part_checks")


def test_stages_of_a_pipeline_have_one_average_and_go_on_with_fewer_stages_after_a_kill(tmp_path):
    of_parts(4, tmp_path, f"pipeline:{tmp_path}")
    of_parts(4, tmp_path, f"a_killed_stage:{tmp_path}")
    assert len(list(tmp_path.glob("survived_*"))) == 3
    of_parts(4, tmp_path, f"go_on:{tmp_path}:files")
    for ranks in (3, 2):
        of_parts(ranks, tmp_path, f"go_on:{tmp_path}:folder")


@pytest.mark.parametrize("ranks", [2, 3])
def test_experts_of_one_name_are_not_mixed_up(tmp_path, ranks):
    of_parts(ranks, tmp_path, f"experts:{tmp_path}")


def test_stages_may_be_shards_or_replicas(tmp_path):
    of_parts(4, tmp_path, f"stages_of:fsdp2:{tmp_path}", f"stages_of:ddp:{tmp_path}")
