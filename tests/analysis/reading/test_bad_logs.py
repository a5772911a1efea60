"""Rows of logs: which count, and which are left out and named."""

import pytest

from analysis.measures import results
from analysis.reading import logs
from tests.support import synthetic_logs
from tests.support.synthetic_logs import HIT, csv_of, notes, steps
from weight_averaging.errors import UsageError


def test_a_whole_last_row_without_a_newline_counts_and_is_named(tmp_path):
    file = csv_of(synthetic_logs.write(tmp_path, "one", HIT))
    file.write_text(file.read_text().rstrip("\n"))
    assert steps(tmp_path) == [30]
    assert "kept 1 x a last line that no newline ends, but whole: " in notes(tmp_path)


@pytest.mark.parametrize(
    ("last", "kept"),
    [
        ("3,30,3,1000,0.6", False),  # may have been 0.4|6: no
        ("3,30,3,1000", False),
        ("3,30,3,1000,0.2", True),  # as in the row above
    ],
)
def test_a_last_number_that_may_be_cut_does_not_count(tmp_path, last, kept):
    file = csv_of(synthetic_logs.write(tmp_path, "one", HIT))
    header = "accumulated_submission_time,global_step,score,validation/num_examples,validation/accuracy"
    file.write_text(f"{header}\n1,10,1,1000,0.1\n2,20,2,1000,0.2\n{last}")
    read = logs.read(tmp_path)
    assert read.evaluations["global_step"].tolist() == [10, 20, 30][: 2 + kept]
    assert len(read.skipped) == 1


def test_a_copied_study_is_no_competitor(tmp_path):
    folder = synthetic_logs.write(tmp_path, "one", HIT)
    study = folder.parents[1]
    study.rename(study.with_name("study_1_rerun"))
    synthetic_logs.write(tmp_path, "one", HIT)
    read = logs.read(tmp_path)
    assert read.runs["submission"].tolist() == ["one"]
    assert "in study_1_rerun, which is no study_<number>: rename it if it counts" in notes(tmp_path)


@pytest.mark.parametrize("score", ["0", "-1", "", "inf", "nan"])
def test_an_evaluation_without_a_time_does_not_count(tmp_path, score):
    file = csv_of(synthetic_logs.write(tmp_path, "one", [0.1, 0.6, 0.7]))
    file.write_text(file.read_text().replace("2.0,20,2.0,", f"2.0,20,{score},"))
    found = results.of(logs.read(tmp_path))
    assert found.trials[["steps", "seconds"]].to_numpy().tolist() == [[30, 3]]
    assert "skipped 1 x an evaluation whose score (seconds) is no positive number: " in "\n".join(found.notes)


@pytest.mark.parametrize("step", ["", "nan", "inf", "-5", "oops"])
def test_a_line_without_a_step_hides_no_resume(tmp_path, step):
    """Update 20 was done again after it, and is no longer at the target."""
    file = csv_of(synthetic_logs.write(tmp_path, "one", HIT))
    again = [f"1,{step},1,0.3,1000", "1,10,1,0.1,1000", "2,20,2,0.2,1000", "3,30,3,0.6,1000"]
    lines = [synthetic_logs.HEADER, "1,10,1,0.1,1000", "2,20,2,0.9,1000", *again]
    file.write_text("\n".join(lines) + "\n")
    synthetic_logs.write(tmp_path, "two", HIT)
    assert steps(tmp_path) == [30, 30]
    assert "skipped 1 x a line without a step number: " in notes(tmp_path)
    assert "skipped 2 x an evaluation done again after a preemption: " in notes(tmp_path)


def test_columns_may_change_and_change_back(tmp_path):
    file = csv_of(synthetic_logs.write(tmp_path, "one", HIT))
    other = synthetic_logs.HEADER + ",test/accuracy"
    lines = [synthetic_logs.HEADER, "1,10,1,0.1,1000", other, "2,20,2,0.2,1000,0.1", synthetic_logs.HEADER]
    file.write_text("\n".join([*lines, "3,30,3,0.6,1000", "4,40,4,0.7,1000"]) + "\n")
    read = logs.read(tmp_path)
    assert read.evaluations["global_step"].tolist() == [10, 20, 30, 40]
    assert len(read.skipped) == 0


def test_a_clock_that_goes_back_is_told(tmp_path):
    """A resumed run whose time was lost seems faster than it is."""
    file = csv_of(synthetic_logs.write(tmp_path, "one", HIT))
    file.write_text(file.read_text().replace("3.0,30,3.0", "0.5,30,0.5"))
    assert "kept 1 x an evaluation at an earlier score (seconds) than the one before" in notes(tmp_path)


def test_a_run_without_any_time_is_left_out(tmp_path):
    file = csv_of(synthetic_logs.write(tmp_path, "one", [0.6]))
    file.write_text(file.read_text().replace("1.0,10,1.0", "1.0,10,0"))
    with pytest.raises(UsageError, match=r"no usable evaluation below .*; the first skipped: "):
        logs.read(tmp_path)
    synthetic_logs.write(tmp_path, "two", HIT)
    read = logs.read(tmp_path)
    assert read.runs["submission"].tolist() == ["two"]
    assert read.evaluations["run"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("trial", [1, 2])  # the same one, or a stray one
def test_two_frameworks_are_refused_by_name(tmp_path, trial):
    folder = synthetic_logs.write(tmp_path, "one", HIT)
    synthetic_logs.write(tmp_path, "one", HIT, study=1)
    other = folder.parent.with_name("toy_jax") / f"trial_{trial}"
    other.mkdir(parents=True)
    csv_of(other).write_text(csv_of(folder).read_text())
    expected = rf"'one' has runs of toy in two frameworks, pytorch \(2\) and jax \(1: .*/toy_jax/trial_{trial}\); move"
    with pytest.raises(UsageError, match=expected):
        logs.read(tmp_path)


def test_quoted_fields(tmp_path):
    file = csv_of(synthetic_logs.write(tmp_path, "one", HIT))
    rows = [line.split(",") for line in file.read_text().splitlines()]
    file.write_text("\ufeff" + "\r\n".join(",".join(f'"{field}"' for field in row) for row in rows) + "\r\n")
    assert steps(tmp_path) == [30]
