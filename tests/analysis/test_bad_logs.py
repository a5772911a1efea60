"""Logs as they come: each gives the right number, or one clear line."""

import json
import os
import subprocess
import tarfile

import numpy as np
import pytest

from analysis.errors import UsageError
from analysis.measures import results, to_target
from analysis.reading import logs
from tests.support import ROOT, synthetic_logs
from tests.support.warm_python import python

HIT = [0.1, 0.2, 0.6]  # reaches the target of .5 at the third evaluation, after 30 updates and 3 s


def csv_of(folder):
    return folder / "eval_measurements.csv"


def steps(root):
    """Updates to target of the only submission."""
    return results.of(logs.read(root)).trials["steps"].tolist()


def notes(root, **options):
    return "\n".join(results.of(logs.read(root), **options).notes)


def official(
    root, submission, workload="fastmri", *, hint=36189, values=(0.7, 0.72, 0.73), meta=None, flags=None, **more
):
    """A run in the official form: dotted meta data, flags."""
    folder = synthetic_logs.write(root, submission, values, workload=workload, metric="ssim", target=None, **more)
    content = {"workload.step_hint": hint, "workload.validation_target_value": 0.723653, **(meta or {})}
    (folder / "meta_data_0.json").write_text(json.dumps(content))
    (folder / "flags_0.json").write_text(json.dumps({"tuning_ruleset": "external", **(flags or {})}))
    return folder


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


def test_infinity_reaches_nothing(tmp_path):
    synthetic_logs.write(tmp_path, "one", [0.1, float("inf"), 0.6])
    found = results.of(logs.read(tmp_path))
    assert found.trials[["steps", "best"]].to_numpy().tolist() == [[30, 0.6]]


def test_minus_infinity_of_a_loss_reaches_nothing(tmp_path):
    synthetic_logs.write(tmp_path, "one", [3, float("-inf"), 0.4], metric="loss")
    assert steps(tmp_path) == [30]


@pytest.mark.parametrize("score", ["0", "-1", "", "inf", "nan"])
def test_an_evaluation_without_a_time_does_not_count(tmp_path, score):
    file = csv_of(synthetic_logs.write(tmp_path, "one", [0.1, 0.6, 0.7]))
    file.write_text(file.read_text().replace("2.0,20,2.0,", f"2.0,20,{score},"))
    found = results.of(logs.read(tmp_path))
    assert found.trials[["steps", "seconds"]].to_numpy().tolist() == [[30, 3]]
    assert "skipped 1 x an evaluation whose score (seconds) is no positive number: " in "\n".join(found.notes)


def test_a_run_without_any_time_is_left_out(tmp_path):
    file = csv_of(synthetic_logs.write(tmp_path, "one", [0.6]))
    file.write_text(file.read_text().replace("1.0,10,1.0", "1.0,10,0"))
    with pytest.raises(UsageError, match=r"no usable evaluation below .*; the first skipped: "):
        logs.read(tmp_path)
    synthetic_logs.write(tmp_path, "two", HIT)
    read = logs.read(tmp_path)
    assert read.runs["submission"].tolist() == ["two"]
    assert read.evaluations["run"].tolist() == [0, 0, 0]


def test_names_that_are_no_utf8_can_be_printed(tmp_path):
    for name in (b"caf\xe9", b"caf\xe8"):
        folder = synthetic_logs.write(tmp_path / "made", "one", HIT)
        os.renames(os.fsencode(folder.parents[2]), os.fsencode(tmp_path) + b"/runs/" + name)
    found = results.of(logs.read(tmp_path / "runs"))
    assert sorted(found.scores.index) == ["caf\\xe8", "caf\\xe9"]
    done = run("report", f"--runs={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert "caf\\xe9" in (tmp_path / "out/table.md").read_text()


def test_meta_data_with_the_workloads_name_alone_say_nothing(tmp_path):
    folder = synthetic_logs.write(tmp_path, "one", HIT)
    (folder / "meta_data_0.json").write_text(json.dumps({"workload": "toy"}))
    with pytest.raises(UsageError, match="no target is known for workload 'toy'"):
        results.of(logs.read(tmp_path))


@pytest.mark.parametrize(
    ("target", "message"), [("0.5", None), ("high", r"validation_target_value is 'high', no number")]
)
def test_a_target_as_text(tmp_path, target, message):
    synthetic_logs.write(tmp_path, "one", HIT, target=target)
    if message is None:
        assert steps(tmp_path) == [30]
    else:
        with pytest.raises(UsageError, match=message):
            results.of(logs.read(tmp_path))


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


def test_quoted_fields(tmp_path):
    file = csv_of(synthetic_logs.write(tmp_path, "one", HIT))
    rows = [line.split(",") for line in file.read_text().splitlines()]
    file.write_text("\ufeff" + "\r\n".join(",".join(f'"{field}"' for field in row) for row in rows) + "\r\n")
    assert steps(tmp_path) == [30]


def test_a_workload_that_one_lacks_is_named(tmp_path):
    for name, workload in (("one", "toy"), ("one", "toy_two"), ("two", "toy")):
        synthetic_logs.write(tmp_path, name, HIT, workload=workload)
    assert "two has no run of toy_two: missed" in notes(tmp_path)


def test_workloads_that_all_lack_are_counted(tmp_path):
    official(tmp_path, "one", hint=18094, values=(0.7, 0.8))
    found = results.of(logs.read(tmp_path))
    assert found.scores.tolist() == pytest.approx([1 / 8])
    assert "7 of the version's 8 workloads have no run: missed by all" in found.notes


def test_mixed_rulesets_are_refused_by_name(tmp_path):
    official(tmp_path, "one")
    official(tmp_path, "two", flags={"tuning_ruleset": "self"})
    read = logs.read(tmp_path)
    with pytest.raises(UsageError, match=r"two rulesets .*one \(external tuning\) and two \(self-tuning\); choose"):
        results.of(read)
    assert results.of(read.only(["two"])).targets["budget_s"].tolist() == [3 * 8859]
    assert results.of(read.only(["one"])).targets["budget_s"].tolist() == [8859]


def test_the_folder_tells_the_ruleset_where_flags_do_not(tmp_path):
    for ruleset in ("external_tuning", "self_tuning"):
        folder = official(tmp_path / ruleset, ruleset)
        (folder / "flags_0.json").unlink()
    with pytest.raises(UsageError, match="two rulesets"):
        results.of(logs.read(tmp_path))


def test_a_variant_that_does_not_count_may_have_another_target(tmp_path):
    official(tmp_path, "one")
    official(tmp_path, "one", "fastmri_layernorm", meta={"workload.validation_target_value": 0.5})
    found = results.of(logs.read(tmp_path))
    assert found.targets.attrs["version"] == "v0.5"
    line = "the runs of fastmri_layernorm say validation_target_value 0.5, v0.5 has 0.723284; the workload does"
    assert any(line in note for note in found.notes)
    official(tmp_path, "one", meta={"workload.validation_target_value": 0.5})
    with pytest.raises(UsageError, match=r"fastmri say validation_target_value 0.5, v0.5 has 0.723653; no version"):
        results.of(logs.read(tmp_path))


def test_a_workload_of_another_kind_is_left_out(tmp_path):
    official(tmp_path, "one")
    synthetic_logs.write(tmp_path, "one", HIT, workload="toy")  # brings its target, and does not count
    synthetic_logs.write(tmp_path, "one", HIT, workload="unknown", target=None)
    found = results.of(logs.read(tmp_path))
    assert found.targets["scored"].to_dict() == {"fastmri": True, "toy": False}
    assert "unknown is no workload of v0.5 and brings no target: left out" in found.notes


def test_a_submission_that_ran_only_variants_is_last(tmp_path):
    for study in range(2):
        official(tmp_path, "one", study=study)
        official(tmp_path, "one", "fastmri_tanh", study=study, meta={"workload.validation_target_value": 0.71784})
        official(tmp_path, "two", "fastmri_tanh", study=study, meta={"workload.validation_target_value": 0.71784})
    found = results.of(logs.read(tmp_path), baseline="one")
    assert found.scores.to_dict() == {"one": pytest.approx(1 / 8), "two": 0.0}
    assert found.ratios == {}
    assert "two has no workload in common with one: no ratio" in found.notes
    alone = results.of(logs.read(tmp_path).only(["two"]))
    assert alone.scores.tolist() == [0.0]
    assert run("score", f"--logs={tmp_path}", "--submissions=two").returncode == 0


def test_another_budget_is_a_note_unless_it_is_another_versions(tmp_path):
    official(tmp_path, "one", hint=18094, meta={"workload.max_allowed_runtime_sec": 9999})
    found = results.of(logs.read(tmp_path))
    assert any(
        "max_allowed_runtime_sec 9999, v0.6 has 4430, which is what a miss counts with" in x for x in found.notes
    )
    official(tmp_path, "two", hint=18094, meta={"workload.max_allowed_runtime_sec": 2745})
    with pytest.raises(UsageError, match=r"fastmri has max_allowed_runtime_sec .* read them apart"):
        results.of(logs.read(tmp_path))


def test_steps_that_cannot_be_updates_are_not_shown(tmp_path):
    # The budget of v0.5 is .245 s an update; `calls` takes 25 s a step.
    official(tmp_path, "baseline", seconds_per_step=0.3)
    official(tmp_path, "calls", seconds_per_step=25.0)
    found = results.of(logs.read(tmp_path), unit="steps")
    assert (
        "the steps of calls cannot be updates (on 1 workload; fastmri: 25 s a step, where 0.24 s is usual)"
        in "".join(found.notes)
    )
    assert found.unit == "seconds"
    assert found.trials.set_index("submission")["steps"].isna().to_dict() == {"baseline": False, "calls": True}
    medians = to_target.submissions(found.best, "steps")
    assert "calls" not in medians.index


def run(script, *flags):
    command = [python(), "-m", f"scripts.{script}", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("unlike", ["official", "one evaluation", "other steps"])
def test_the_report_does_not_need_steps_in_common(tmp_path, unlike):
    for study in range(2):
        for i, name in enumerate(("baseline", "lawa")):
            if unlike == "official":
                folder = official(tmp_path, name, values=(0.5, 0.6, 0.7, 0.73 - 0.02 * study), study=study)
            else:
                folder = synthetic_logs.write(tmp_path, name, HIT, study=study)
            rows = csv_of(folder).read_text().splitlines()
            if unlike == "one evaluation" and study:
                rows = [rows[0], rows[-1]]
            shift = {"one evaluation": 0}.get(unlike, 3 * study + i)  # steps of their own
            cells = [row.split(",") for row in rows[1:]]
            moved = [",".join([row[0], str(int(row[1]) + shift), *row[2:]]) for row in cells]
            csv_of(folder).write_text("\n".join([rows[0], *moved]) + "\n")
    done = run("report", f"--runs={tmp_path}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert "of training" in done.stdout
    assert np.isin(["report.html", "speedup.png"], os.listdir(tmp_path / "out")).all()


def test_the_report_of_an_archive_goes_beside_the_work(tmp_path):
    synthetic_logs.write(tmp_path / "in", "one", HIT)
    with tarfile.open(tmp_path / "logs.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "in", "in")
    command = [python(), "-m", "scripts.report", f"--runs={tmp_path / 'logs.tar.xz'}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "logs_report/report.html").exists()


def test_an_output_folder_that_cannot_be_is_one_line(tmp_path):
    synthetic_logs.write(tmp_path / "in", "one", HIT)
    (tmp_path / "file").write_text("")
    for script, flag in (("report", "runs"), ("score", "logs")):
        done = run(script, f"--{flag}={tmp_path / 'in'}", f"--out={tmp_path / 'file'}")
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1] == f"error: --out={tmp_path / 'file'}: File exists; name another folder"
