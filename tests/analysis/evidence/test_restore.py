"""Committed numbers as finished runs, from which a fresh clone goes on."""

import filecmp
from pathlib import Path

import pytest

from analysis.evidence import data
from launching.evidence import plan
from tests.support import commands


@pytest.mark.parametrize("page", ["evidence", "published_submissions"])
def test_committed_numbers_count_as_finished_runs_and_are_collected_as_they_were(page, tmp_path):
    committed, runs, again = Path("docs/results", page, "data"), tmp_path / "runs", tmp_path / "data"
    put = data.restore(committed, runs)
    assert data.collect(runs, again) == put
    names = sorted(path.name for path in committed.iterdir())
    assert filecmp.cmpfiles(committed, again, names, shallow=False) == (names, [], [])
    file = "plan" if page == "evidence" else "published"
    parts = plan.load(Path(f"comparisons/evidence/{file}.yaml"))
    finished = [one for part in parts.values() for one in plan.count(part, runs) if one.finished(runs)]
    assert len(finished) == put[0]


def test_what_is_finished_stays_when_numbers_are_put_beside_it(tmp_path):
    committed = Path("docs/results/evidence/data")
    data.restore(committed, tmp_path)
    mine = sorted(tmp_path.glob("*/*/*/seed_0.*"))
    for path in mine:
        path.write_text("mine")
    for path in tmp_path.glob("*/*/*/seed_1.*"):
        path.unlink()
    lost = sum(run.facts["seed"] == 1 for run in data.load(committed).runs)
    assert data.restore(committed, tmp_path) == (lost, 0)
    assert {path.read_text() for path in mine} == {"mine"}
    both = commands.run("evidence_page", f"--collect={tmp_path}", f"--restore={tmp_path}")
    assert (both.returncode, both.stderr) == (2, "error: --collect and --restore are opposite ways: give one of them\n")


def test_what_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    for given, said in ((tmp_path / "file", "Not a directory; give a folder"), ("", " names no folder")):
        done = commands.run("evidence_page", f"--restore={given}")
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: --restore={given}")
        assert said in done.stderr
    assert (tmp_path / "file").read_text() == "mine"
