"""Small data sets: made once, whole, and apart from real ones."""

from types import SimpleNamespace

import numpy as np
import pytest

from launching.official_workloads import WORKLOADS, needs_of
from launching.rehearsal import data, sizes
from launching.rehearsal.data import language, pictures, tables
from submissions.recipe.batch_sizes import BATCH_SIZES
from tests.launching.rehearsal.records import prepare
from tests.support.killing import killed_at_every_change
from weight_averaging.errors import UsageError


def test_every_workload_has_a_set_and_a_size():
    for workload in WORKLOADS:
        sizes.size_of(workload)
        for framework in ("pytorch", "jax"):
            assert needs_of(workload, framework).folder in data.SETS


def test_what_the_pipelines_take_for_granted():
    """Sizes below which a pipeline ends in an endless loop, an assertion, or no evaluation; other traps are in
    tests/official/test_rehearsals.py."""
    assert BATCH_SIZES["criteo1tb"] <= tables.TRAINING_LINES  # dropped unless whole, before it repeats
    assert pictures.IMAGES["train"] >= BATCH_SIZES["imagenet_vit"]  # likewise
    assert BATCH_SIZES["librispeech_conformer"] <= language.UTTERANCES  # likewise
    assert pictures.KNEES_HELD_OUT > 100  # the first hundred are the validation set, the rest the test set
    assert pictures.DIGITS == {"train": 60_000, "test": 10_000}
    assert language.TRANSLATION_PIECES == 32_000  # as many as the model has outputs
    held_out = tables.HELD_OUT_PARTS // 2 * tables.LINES_OF_A_PART
    size = sizes.size_of("criteo1tb")
    assert size.examples <= held_out  # the loss is over this number, however many lines there are
    assert size.examples % size.eval_batch == 0
    for molecule in tables.molecules(50, 0):
        assert np.nanmean(molecule["labels"]) < 0.1  # or chance alone reaches the target


def test_a_small_data_set_is_made_once_and_again_when_it_is_not_whole(tmp_path):
    assert prepare(tmp_path)
    folder = tmp_path / "criteo1tb"
    assert len(list(folder.glob("day_*"))) == 23 + tables.HELD_OUT_PARTS
    line = (folder / "day_0_00").read_text().split("\n")[0].split("\t")
    assert len(line) == 1 + 13 + 26
    assert not prepare(tmp_path)
    (folder / "day_23_07").unlink()
    assert prepare(tmp_path)
    assert (folder / "day_23_07").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["criteo1tb"]


def test_a_set_in_the_place_of_another_is_made_anew(tmp_path):
    prepare(tmp_path)
    (tmp_path / "criteo1tb").rename(tmp_path / "other")
    data.write_manifest(tmp_path / "other", "ogbg")
    (tmp_path / "other").rename(tmp_path / "criteo1tb")
    assert prepare(tmp_path)
    assert not prepare(tmp_path)


def test_real_data_is_left_alone(tmp_path):
    real = tmp_path / "criteo1tb" / "day_0_00"
    real.parent.mkdir()
    real.write_text("real")
    with pytest.raises(UsageError, match="holds data that no rehearsal made") as error:
        prepare(tmp_path)
    assert "\n" not in str(error.value)
    assert [path.name for path in real.parent.iterdir()] == ["day_0_00"]


def test_a_set_killed_while_it_is_replaced_is_not_taken_for_real_data(tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / "criteo1tb").mkdir(parents=True)
    for name in ("day_0_00", "day_0_01"):
        (home / "criteo1tb" / name).touch()
    data.write_manifest(home / "criteo1tb", "ogbg")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: SimpleNamespace(returncode=1, stderr="no making here"))

    def replaced() -> None:
        with pytest.raises(UsageError, match="no making here"):
            prepare(home)

    for _ in killed_at_every_change(home, replaced):
        replaced()
        assert not (home / "criteo1tb").exists()


def test_a_set_that_cannot_be_made_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"could not be written below .*KeyError: 'none'") as error:
        prepare(tmp_path, "none")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2e8))
    with pytest.raises(UsageError, match=r"0.2 GB free, the small data sets want 1 GB"):
        prepare(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UsageError, match=r"--data_dir=.*file: .*file is no folder$"):
        prepare(file)
