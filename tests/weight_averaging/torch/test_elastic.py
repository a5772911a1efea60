"""A run of four ranks, of which one is killed, goes on with three (the run is in elastic_ranks.py)."""

import shutil

import pytest

from tests.support.killing import newest
from tests.weight_averaging.torch.test_ranks import of_meshes, run


@of_meshes
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_a_run_goes_on_with_fewer_ranks_after_one_was_killed(tmp_path, kind):
    """And ends with the averages of a run that was never broken off, bit for bit."""
    with pytest.raises(AssertionError, match="SIGKILL"):
        run(4, tmp_path, f"run:{kind}:{tmp_path}:2", module="elastic_ranks")
    assert newest(tmp_path) == 6
    for path in tmp_path.glob("writing_*"):  # by whoever starts again
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    run(3, tmp_path, f"run:{kind}:{tmp_path}:9", module="elastic_ranks")
