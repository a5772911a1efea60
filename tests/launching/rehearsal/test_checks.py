"""Whether faults of an average are seen in what was written down on the way, and what is told of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launching.rehearsal import averages, checks, sizes, table
from launching.rehearsal.record import EVENTS, UPDATED
from tests.launching.rehearsal.records import AVERAGES, KILLED_AFTER, UPDATES, failed, promise, recorded, result
from tests.support import reference
from weight_averaging.averages import EMA, LAWA


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.floats(0.1, 0.9), st.integers(0, 12))
def test_the_reference_is_that_of_the_library(interval, window, decay, step):
    weights = {t: np.random.RandomState(t).randn(5).astype(np.float32) for t in range(step + 1)}
    snapshots = [weights[t] for t in range(1, step + 1) if t % interval == 0]
    for average, slow in (
        (LAWA(interval=interval, window=window), reference.lawa(snapshots, window)),
        (EMA(interval=interval, decay=decay), reference.ema(snapshots, decay)),
    ):
        found = averages.expected(averages.Promise(**promise(average)), weights, step)
        assert (found is None) == (slow is None)
        if slow is not None:
            np.testing.assert_allclose(found, slow, rtol=0, atol=1e-12)


@pytest.mark.parametrize("average", [pair[1] for pair in AVERAGES.values()])
def test_a_run_as_it_should_be_passes(average, tmp_path):
    record, _ = recorded(tmp_path / "record", average)
    assert failed(record) == {}
    found = checks.measured(record)
    assert (found.update, found.evaluation, found.checkpoint, found.device_gib) == (0.2, 0.3, 0.4, None)
    assert 0 < found.host_gib < 100
    assert found.processor > 0


def test_faults_are_seen(tmp_path):
    _, weights = recorded(tmp_path / "good")
    mean = np.mean([weights[t] for t in (4, 5, 6)], axis=0)
    faults = {
        "raw weights were evaluated": ({"seen": {5: weights[5]}}, "average"),
        "one snapshot is missing": ({"seen": {6: np.mean([weights[5], weights[6]], axis=0)}}, "average"),
        "the window is one update old": ({"seen": {6: np.mean([weights[t] for t in (3, 4, 5)], axis=0)}}, "average"),
        "a mean before the window is full": ({"seen": {2: np.mean([weights[1], weights[2]], axis=0)}}, "average"),
        "half the precision": ({"seen": {6: mean.astype(np.float16)}}, "average"),
        "not a number": ({"seen": {6: np.full(7, np.nan)}}, "average"),
        "training goes on from the average": ({"trained": {6: mean}}, "raw weights back"),
        "other weights are restored": ({"restored": weights[1]}, "checkpoint"),
        "an evaluation failed in silence": ({"lost": (3,)}, "evaluations"),
    }
    for number, (fault, (changes, name)) in enumerate(faults.items()):
        record, _ = recorded(tmp_path / str(number), **changes)
        assert list(failed(record)) == [name], fault


def test_on_top_of_another_average_only_evaluations_of_ours_are_promised(tmp_path):
    _, weights = recorded(tmp_path / "good")
    early, late = {"seen": {2: weights[1]}, "on_top": True}, {"seen": {6: weights[6]}, "on_top": True}
    assert failed(recorded(tmp_path / "early", **early)[0]) == {}
    assert list(failed(recorded(tmp_path / "late", **late)[0])) == ["average"]


def test_a_run_that_ends_otherwise_is_seen(tmp_path):
    record, weights = recorded(tmp_path / "record")
    assert failed(record, codes=(0,)) == {"end": "ended before it could be killed"}
    assert failed(record, codes=(-9, 1)) == {"end": "resumed, failed with exit status 1"}
    for step in range(1, UPDATES + 1):
        record.keep(UPDATED, step, [weights[0]])
    assert failed(record)["updates"] == "never changed the weights"
    (record.folder / f"{UPDATED}_6.npy").unlink()
    assert failed(record)["updates"] == "5 of 6 made"
    (record.folder / EVENTS).unlink()
    expected = {"data read", "updates", "evaluations", "average", "raw weights back", "checkpoint", "end"}
    assert set(failed(record)) == expected


def test_a_submission_of_others_is_told_by_whether_its_evaluations_differ(tmp_path):
    record, weights = recorded(tmp_path / "raw", average=None)
    assert failed(record) == {}
    record, _ = recorded(tmp_path / "own", average=None, seen={5: weights[1], 6: weights[2]})
    assert failed(record) == {}
    said = {c.name: c for c in checks.checks(record, UPDATES, KILLED_AFTER, (-9, 0))}
    assert said["average"].passed is None
    assert said["average"].says == "other than the raw weights at 2 of 6 evaluations"


def test_a_line_that_a_kill_cut_is_left_out(tmp_path):
    record, _ = recorded(tmp_path / "record")
    count = len(record.events())
    with open(record.folder / EVENTS, "a") as file:
        file.write('{"event": "upd')
    assert len(record.events()) == count


def test_the_table_says_what_failed():
    good, bad = result(), result(checks={"average": False})
    assert [table.passed(each) for each in (good, bad)] == [True, False]
    assert table.passed(result(checks={"average": None}))
    for text in (table.markdown([good, bad]), table.text([good, bad])):
        assert "average: <average>" in text
    page = table.page([good, bad], ["a < b"])
    assert "&lt;average&gt;" in page
    assert "a &lt; b" in page
    assert page.count("<tr") == 3


def test_hours_of_a_real_entry_follow_from_official_batches_alone():
    on_gpus = {"gpus": 4, "full_batch": True}
    assert table.hours(result()) is None
    assert table.hours(result(cell={"gpus": 4})) is None
    assert table.hours(result(cell=on_gpus, update=0.1)) == pytest.approx(15 * 52_000 * 0.1 / 3600)
    assert table.hours(result(cell=on_gpus, update=10.0)) == pytest.approx(15 * 11_303 / 3600)
    assert table.hours(result(cell=on_gpus, update=0.1) | {"batch": 256}) is None, "half a batch is another run"
    self_tuning = {**on_gpus, "search_space": None}
    assert table.hours(result(cell=self_tuning, update=10.0)) == pytest.approx(3 * 1.5 * 11_303 / 3600)


def test_sizes_follow_the_devices():
    four = sizes.settings("ogbg", 4, False, False)
    assert (four["batch"], four["eval_batch"], four["examples"], four["attributes"]) == (64, 256, 512, {})
    full = sizes.settings("finewebedu_lm", 4, False, True)
    assert (full["batch"], full["eval_batch"]) == (None, None)
    assert sizes.settings("finewebedu_lm", 1, True, False)["attributes"] == sizes.SMALL_LM
    assert sizes.rehearsed_name("criteo1tb", True) == "criteo1tb_test"
    assert sizes.rehearsed_name("criteo1tb", False) == "criteo1tb"
    assert sizes.rehearsed_name("criteo1tb_layernorm", True) == "criteo1tb_layernorm"
    mnist = sizes.settings("mnist", 2, True, False)
    assert (mnist["batch"], mnist["examples"]) == (32, 10_000)
