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


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_of_none_or_many_tensors_are_averaged_as_the_whole_model(tmp_path, ranks):
    """Drawn at random: which rank has which tensors, before a state is saved and after it is loaded."""
    run(ranks, tmp_path, f"random_parts:{tmp_path}:{ranks}:6", module="uneven_checks")


def test_a_part_may_become_empty_or_cease_to_be_so(tmp_path):
    run(3, tmp_path, "unfrozen_later", module="uneven_checks")
    run(4, tmp_path, f"empty_shards_of_stages:{tmp_path}", module="uneven_checks")


def test_what_one_rank_cannot_average_is_told_on_all(tmp_path):
    run(3, tmp_path, "refused_on_all", module="uneven_checks")


def test_a_rank_with_several_stages_averages_them_under_the_names_of_the_whole_model(tmp_path):
    """A real interleaved schedule; a state of three ranks with two stages goes on with two ranks of three, and back."""
    module = "interleaved_checks"
    run(3, tmp_path, f"interleaved:{tmp_path}:2", "names_of_stages", module=module)
    run(2, tmp_path, f"go_on_interleaved:{tmp_path}:3:2", f"interleaved:{tmp_path}:3", module=module)
    run(3, tmp_path, f"go_on_interleaved:{tmp_path}:2:3", module=module)
