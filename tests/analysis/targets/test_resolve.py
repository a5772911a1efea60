"""Which version, target, budget and ruleset runs have, and what is said where they disagree."""

import json

import pytest

from analysis.measures import results
from analysis.reading import logs
from analysis.targets import resolve, versions
from tests.support import synthetic_logs
from tests.support.synthetic_logs import HIT, official, steps
from weight_averaging.errors import UsageError


def test_the_runs_own_targets(tmp_path):
    synthetic_logs.write(tmp_path, "one", [0.1, 0.6], target=0.55)
    table = resolve.resolve(logs.read(tmp_path))
    assert table.loc["toy", ["metric", "lower", "target"]].tolist() == ["accuracy", False, 0.55]
    assert table.attrs["version"] == versions.OWN


def test_an_unknown_workload_says_how_to_add_one(tmp_path):
    synthetic_logs.write(tmp_path, "one", [0.1], target=None)
    with pytest.raises(
        UsageError, match=r"no target is known for workload 'toy': add it .* analysis/targets/versions/"
    ):
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
    assert versions.guess({"fastmri"}, versions.told(read)) == "v0.5"
    with pytest.raises(UsageError, match=r"step_hint 36189, v0.6 has 18094; score them apart, with --version=v0.5"):
        resolve.resolve(read, "v0.6")


def test_a_missing_metric_column_is_named(tmp_path):
    synthetic_logs.write(tmp_path, "one", [0.1], workload="wmt", target=None)
    expected = r"wmt_pytorch/trial_1/eval_measurements.csv has no column validation/bleu, but validation/accuracy"
    with pytest.raises(UsageError, match=expected):
        resolve.resolve(logs.read(tmp_path))


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


def test_another_budget_is_a_note_unless_it_is_another_versions(tmp_path):
    official(tmp_path, "one", hint=18094, meta={"workload.max_allowed_runtime_sec": 9999})
    found = results.of(logs.read(tmp_path))
    assert any(
        "max_allowed_runtime_sec 9999, v0.6 has 4430, which is what a miss counts with" in x for x in found.notes
    )
    official(tmp_path, "two", hint=18094, meta={"workload.max_allowed_runtime_sec": 2745})
    with pytest.raises(UsageError, match=r"fastmri has max_allowed_runtime_sec .* read them apart"):
        results.of(logs.read(tmp_path))
