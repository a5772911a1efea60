"""Reading logs: headers, repeated evaluations, names given twice."""

import pytest

from analysis.reading import logs
from tests.support import synthetic_logs
from tests.support.synthetic_logs import HEADER
from weight_averaging.errors import UsageError


def reasons(read: logs.Logs) -> dict[str, int]:
    return read.skipped["reason"].value_counts().to_dict()


def test_half_written_lines_and_repeated_headers(tmp_path):
    file = synthetic_logs.write(tmp_path, "one", [0.1, 0.2, 0.3]) / "eval_measurements.csv"
    text = file.read_text()
    # Killed while writing 0.62: what is left would reach a target of 0.6 only by luck, and might as well be 0.6|8.
    file.write_text(f"{text}4,40\n{HEADER}\n5,50,5,0.4,1000\n6,60,6,0.6")
    read = logs.read(tmp_path)
    assert read.evaluations["global_step"].tolist() == [10, 20, 30, 50]
    assert reasons(read) == {"half-written last line": 1, "a line with too few or too many fields": 1}
    assert str(file) in read.skipped["path"].tolist()


def test_a_second_header_may_have_other_columns(tmp_path):
    file = synthetic_logs.write(tmp_path, "one", [0.1, 0.2]) / "eval_measurements.csv"
    file.write_text(file.read_text() + "global_step,new,score,validation/accuracy\n30,7,3,0.3\n")
    rows = logs.read(tmp_path).evaluations
    assert rows["validation/accuracy"].tolist() == [0.1, 0.2, 0.3]
    assert rows["new"].tolist()[2] == 7


def test_an_evaluation_done_again_after_a_preemption_counts_once(tmp_path):
    file = synthetic_logs.write(tmp_path, "one", [0.1, 0.2, 0.9]) / "eval_measurements.csv"
    # Resumed from the checkpoint of step 10: the hit at step 30 was in the part that was lost.
    file.write_text(file.read_text() + "2.5,20,2.5,0.25,1000\n3.5,30,3.5,0.35,1000\n4.5,40,4.5,0.95,1000\n")
    read = logs.read(tmp_path)
    assert read.evaluations["validation/accuracy"].tolist() == [0.1, 0.25, 0.35, 0.95]
    assert reasons(read) == {"an evaluation done again after a preemption": 2}


def test_missing_empty_and_stray_files_are_named(tmp_path):
    synthetic_logs.write(tmp_path, "one", [0.1])
    (synthetic_logs.write(tmp_path, "one", [0.1], trial=2) / "eval_measurements.csv").unlink()
    synthetic_logs.write(tmp_path, "one", [], trial=3)
    (synthetic_logs.write(tmp_path, "one", [0.1], trial=4) / "eval_measurements.csv").write_text("")
    (tmp_path / "one/study_0/eval_measurements.csv").write_text(f"{HEADER}\n1,10,1,0.1,1000\n")
    read = logs.read(tmp_path)
    assert len(read.runs) == 1
    assert len(read.skipped) == 4
    lines = logs.summary_of_skipped(read)
    assert len(lines) == 3  # header only, and nothing at all, are one reason
    assert any("1 x a trial without eval_measurements.csv" in line and "trial_2" in line for line in lines)


def test_two_submissions_of_one_name(tmp_path):
    synthetic_logs.write(tmp_path / "mine", "one", [0.1])
    synthetic_logs.write(tmp_path / "theirs", "one", [0.1], study=1)
    with pytest.raises(UsageError, match=r"two submissions are named 'one': .*mine/one and .*theirs/one; rename"):
        logs.read([tmp_path / "mine", tmp_path / "theirs"])


def test_two_logs_of_one_run(tmp_path):
    folder = synthetic_logs.write(tmp_path, "one", [0.1])
    again = folder.with_name("trial_01")
    again.mkdir()
    (again / "eval_measurements.csv").write_text((folder / "eval_measurements.csv").read_text())
    with pytest.raises(UsageError, match=r"two logs of one run: .*trial_01 and .*trial_1"):
        logs.read(tmp_path)
