"""Folders, links and archives of logs: read alike, or one clear line."""

import io
import os
import tarfile

import numpy as np
import pytest

from analysis.measures import results
from analysis.reading import logs
from tests.support import synthetic_logs
from tests.support.commands import run
from tests.support.synthetic_logs import HIT, notes, steps
from weight_averaging.errors import UsageError


def test_reads_folders_and_archives_alike(tmp_path):
    for study in range(2):
        synthetic_logs.write(tmp_path / "in", "one", [0.1, 0.6], study=study)
    with tarfile.open(tmp_path / "logs.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "in", "some/where")
    folder, packed = logs.read(tmp_path / "in"), logs.read(tmp_path / "logs.tar.xz")
    assert folder.evaluations.equals(packed.evaluations)
    assert folder.runs.drop(columns="folder").equals(packed.runs.drop(columns="folder"))
    assert folder.runs.loc[1, ["submission", "study", "workload", "trial"]].tolist() == ["one", 1, "toy", 1]
    assert folder.runs.loc[0, "hparams"]["learning_rate"] == 0.01


def test_a_submission_or_a_study_can_be_the_root(tmp_path):
    synthetic_logs.write(tmp_path, "one", [0.1], study=3)
    for root in (tmp_path, tmp_path / "one", tmp_path / "one/study_3", tmp_path / "one/study_3/toy_pytorch"):
        assert logs.read(root).runs.loc[0, ["submission", "study"]].tolist() == ["one", 3]


def test_a_linked_workload_folder_counts_under_the_links_name(tmp_path):
    folder = synthetic_logs.write(tmp_path / "elsewhere", "one", HIT)
    home = tmp_path / "runs/two/study_0"
    home.mkdir(parents=True)
    (home / "toy_pytorch").symlink_to(folder.parent)
    read = logs.read(tmp_path / "runs")
    assert read.runs[["submission", "workload"]].to_numpy().tolist() == [["two", "toy"]]
    assert steps(tmp_path / "runs") == [30]


def test_links_in_circles_and_to_nowhere_are_named(tmp_path):
    folder = synthetic_logs.write(tmp_path, "one", HIT)
    (folder / "back").symlink_to(tmp_path)
    (folder.parent / "trial_2").symlink_to(tmp_path / "gone")
    said = notes(tmp_path)
    assert "skipped 1 x a link to a folder that it is in: " in said
    assert "skipped 1 x a link that leads nowhere: " in said


def test_folders_that_link_each_other_are_read_once_each(tmp_path):
    for name, other in (("one", "two"), ("two", "one")):
        folder = synthetic_logs.write(tmp_path / name, "made", HIT)
        folder.parents[2].rename(tmp_path / name / f"by_{name}")
        (tmp_path / name / "link").symlink_to(tmp_path / other)
    with pytest.raises(UsageError, match=r"two submissions are named 'by_(one|two)'"):
        logs.read(tmp_path)  # one/by_one and two/link/by_one
    assert sorted(logs.read(tmp_path / "one").runs["submission"]) == ["by_one", "by_two"]


def test_links_in_an_archive_are_named(tmp_path):
    folder = synthetic_logs.write(tmp_path / "in", "one", HIT)
    (folder.parents[1] / "other_pytorch").symlink_to("toy_pytorch")
    (folder / "hparams.json").unlink()
    (folder / "hparams.json").symlink_to("gone.json")
    with tarfile.open(tmp_path / "logs.tar", "w") as archive:
        archive.add(tmp_path / "in", "in")
    said = notes(tmp_path / "logs.tar")
    assert "a link in an archive: pack with tar --dereference: in/one/study_0/other_pytorch" in said
    assert "a link that leads nowhere: in/one/study_0/toy_pytorch/trial_1/hparams.json" in said


def test_names_that_are_no_utf8_can_be_printed(tmp_path):
    for name in (b"caf\xe9", b"caf\xe8"):
        folder = synthetic_logs.write(tmp_path / "made", "one", HIT)
        os.renames(os.fsencode(folder.parents[2]), os.fsencode(tmp_path) + b"/runs/" + name)
    found = results.of(logs.read(tmp_path / "runs"))
    assert sorted(found.scores.index) == ["caf\\xe8", "caf\\xe9"]
    done = run("report", f"--runs={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert "caf\\xe9" in (tmp_path / "out/table.md").read_text()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root / "missing", "missing does not exist; name a folder"),
        (lambda root: root, "holds no run logs: expected files <submission>/study_K/"),
        (lambda root: _file(root / "a.txt"), "a.txt is neither a folder nor a tar archive"),
        (lambda root: _file(root / "a.tar.xz"), "a.tar.xz cannot be read as an archive"),
    ],
)
def test_no_log_folder(tmp_path, make, message):
    with pytest.raises(UsageError, match=message):
        logs.read(make(tmp_path))


def _file(path):
    path.write_text("no archive")
    return path


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", r"it is empty \(0 bytes\); fetch it again"), (b"\n<!DOCTYPE html><title>404", "it is a web page; fetch"),
     (b"words", "not a|could not")],
)  # fmt: skip
@pytest.mark.parametrize("name", ["logs.tar.xz", "logs.tar"])
def test_no_archive_is_one_line(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=rf"{name} cannot be read as an archive: .*({reason})") as error:
        logs.read(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_cut_archive_is_one_line(tmp_path):
    synthetic_logs.write(tmp_path / "in", "one", list(np.random.default_rng(0).random(2000)))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        archive.add(tmp_path / "in", "in")
    (tmp_path / "cut.tar.xz").write_bytes(buffer.getvalue()[:2000])
    with pytest.raises(UsageError, match=r"cut.tar.xz cannot be read as an archive"):
        logs.read(tmp_path / "cut.tar.xz")
