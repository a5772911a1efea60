"""Reading logs, and what is said of bad ones."""

import io
import json
import tarfile

import numpy as np
import pytest

from analysis.measures import to_target
from analysis.reading import logs
from analysis.targets import resolve, versions
from tests.support import synthetic_logs
from tests.support.synthetic_logs import HEADER
from weight_averaging.errors import UsageError


def reasons(read: logs.Logs) -> dict[str, int]:
    return read.skipped["reason"].value_counts().to_dict()


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


def test_nan_and_words_reach_nothing(tmp_path):
    file = synthetic_logs.write(tmp_path, "one", [float("nan"), 0.4, 0.7]) / "eval_measurements.csv"
    file.write_text(file.read_text().replace("0.4", "oops"))
    read = logs.read(tmp_path)
    trials = to_target.trials(read, resolve.resolve(read))
    assert trials.loc[0, ["steps", "best", "final"]].tolist() == [30, 0.7, 0.7]


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


def test_an_unknown_workload_says_how_to_add_one(tmp_path):
    synthetic_logs.write(tmp_path, "one", [0.1], target=None)
    with pytest.raises(UsageError, match=r"no target is known for workload 'toy': add it .* analysis/versions/"):
        resolve.resolve(logs.read(tmp_path))


def test_a_variant_of_another_version_is_named(tmp_path):
    synthetic_logs.write(tmp_path, "one", [0.1], workload="fastmri_tanh", metric="ssim", target=None)
    with pytest.raises(UsageError, match=r"fastmri_tanh is no workload of v0.6 but of v0.5: pass --version=v0.5"):
        resolve.resolve(logs.read(tmp_path), "v0.6")


def test_mixed_versions_in_one_folder(tmp_path):
    folders = [synthetic_logs.write(tmp_path, name, [0.1], target=None) for name in ("one", "two")]
    for folder, hint in zip(folders, (36189, 18094)):
        (folder / "meta_data_0.json").write_text(json.dumps({"workload.step_hint": hint}))
    with pytest.raises(UsageError, match=r"mixed benchmark versions: toy has step_hint 36189 in .* but 18094 in"):
        resolve.resolve(logs.read(tmp_path))


def test_logs_of_another_version_than_asked_for(tmp_path):
    folder = synthetic_logs.write(tmp_path, "one", [0.1], workload="fastmri", metric="ssim", target=None)
    (folder / "meta_data_0.json").write_text(json.dumps({"workload.step_hint": 36189}))
    read = logs.read(tmp_path)
    assert versions.guess(read) == "v0.5"
    with pytest.raises(UsageError, match=r"step_hint 36189, v0.6 has 18094; score them apart, with --version=v0.5"):
        resolve.resolve(read, "v0.6")


def test_a_missing_metric_column_is_named(tmp_path):
    synthetic_logs.write(tmp_path, "one", [0.1], workload="wmt", target=None)
    expected = r"wmt_pytorch/trial_1/eval_measurements.csv has no column validation/bleu, but validation/accuracy"
    with pytest.raises(UsageError, match=expected):
        resolve.resolve(logs.read(tmp_path))


def test_the_runs_own_targets(tmp_path):
    synthetic_logs.write(tmp_path, "one", [0.1, 0.6], target=0.55)
    table = resolve.resolve(logs.read(tmp_path))
    assert table.loc["toy", ["metric", "lower", "target"]].tolist() == ["accuracy", False, 0.55]
    assert table.attrs["version"] == versions.OWN


def test_unequal_studies_are_told_in_one_line(tmp_path):
    for study in range(3):
        for trial in (1, 2) if study else (1,):
            synthetic_logs.write(tmp_path, "one", [0.1], study=study, trial=trial)
    read = logs.read(tmp_path)
    line = to_target.unequal(to_target.trials(read, resolve.resolve(read)))
    assert line == "unequal: 1 of 3 studies have other than 2 trials: one (1)"


def test_a_cut_archive_is_one_line(tmp_path):
    synthetic_logs.write(tmp_path / "in", "one", list(np.random.default_rng(0).random(2000)))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        archive.add(tmp_path / "in", "in")
    (tmp_path / "cut.tar.xz").write_bytes(buffer.getvalue()[:2000])
    with pytest.raises(UsageError, match=r"cut.tar.xz cannot be read as an archive"):
        logs.read(tmp_path / "cut.tar.xz")
