"""What is said of all runs together: the unit, who is missing, what does not count."""

import pytest

from analysis.measures import results, to_target
from analysis.reading import logs
from tests.support import synthetic_logs
from tests.support.commands import run
from tests.support.synthetic_logs import HIT, notes, official


def test_miniature_runs_are_scored_by_steps_official_ones_by_seconds(tmp_path):
    synthetic_logs.write(tmp_path, "slow", [0.1, 0.6, 0.6], seconds_per_step=0.9)
    synthetic_logs.write(tmp_path, "late", [0.1, 0.2, 0.6])
    by_steps, by_seconds = results.of(logs.read(tmp_path)), results.of(logs.read(tmp_path), unit="seconds")
    assert list(by_steps.scores.index) == ["slow", "late"]
    assert list(by_seconds.scores.index) == ["late", "slow"]
    assert results.title(by_steps) == "the runs' own targets, over updates"


def test_a_workload_that_one_lacks_is_named(tmp_path):
    for name, workload in (("one", "toy"), ("one", "toy_two"), ("two", "toy")):
        synthetic_logs.write(tmp_path, name, HIT, workload=workload)
    assert "two has no run of toy_two: missed" in notes(tmp_path)


def test_workloads_that_all_lack_are_counted(tmp_path):
    official(tmp_path, "one", hint=18094, values=(0.7, 0.8))
    found = results.of(logs.read(tmp_path))
    assert found.scores.tolist() == pytest.approx([1 / 8])
    assert "7 of the version's 8 workloads have no run: missed by all" in found.notes


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


def test_times_to_target_are_worked_out_once(tmp_path, monkeypatch):
    for name in ("nadamw", "lawa", "ema", "other"):
        synthetic_logs.write(tmp_path, name, [0.1, 0.6])
    calls = []
    for function in (to_target.studies, to_target.submissions):
        counted = lambda *given, function=function: calls.append(function.__name__) or function(*given)  # noqa: E731
        monkeypatch.setattr(to_target, function.__name__, counted)
    found = results.of(logs.read(tmp_path))
    assert sorted(calls) == ["studies", "submissions"]
    assert len(found.ratios) == 3
    assert found.measured.curves is found.measured.curves
