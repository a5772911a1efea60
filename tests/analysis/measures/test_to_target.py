"""Steps and time to target, of trials, studies and submissions."""

import numpy as np
import pytest

from analysis.measures import results, to_target
from analysis.measures.to_target import Measured
from analysis.reading import logs
from analysis.report import tables
from analysis.targets import resolve
from tests.support import synthetic_logs
from tests.support.synthetic_logs import steps
from weight_averaging.errors import UsageError


def test_nan_and_words_reach_nothing(tmp_path):
    file = synthetic_logs.write(tmp_path, "one", [float("nan"), 0.4, 0.7]) / "eval_measurements.csv"
    file.write_text(file.read_text().replace("0.4", "oops"))
    read = logs.read(tmp_path)
    trials = Measured(read, resolve.resolve(read)).trials
    assert trials.loc[0, ["steps", "best", "final"]].tolist() == [30, 0.7, 0.7]


def test_infinity_reaches_nothing(tmp_path):
    synthetic_logs.write(tmp_path, "one", [0.1, float("inf"), 0.6])
    found = results.of(logs.read(tmp_path))
    assert found.trials[["steps", "best"]].to_numpy().tolist() == [[30, 0.6]]


def test_a_run_that_diverges_has_no_final_metric(tmp_path):
    """Neither has the mean over seeds one of which diverged: the others are the lucky ones."""
    synthetic_logs.write(tmp_path, "one", [0.1, 0.6, float("nan")])
    synthetic_logs.write(tmp_path, "one", [0.1, 0.6, 0.7], study=1)
    found = results.of(logs.read(tmp_path))
    assert np.isnan(found.trials["final"][0])
    assert found.trials["final"][1] == 0.7
    table = tables.by_submission(found.compared, "one")
    assert np.isnan(table["final"].item())
    assert table["best"].item() == pytest.approx(0.65)


def test_a_target_that_initial_weights_reach_is_refused_in_one_line(tmp_path):
    """Its time would be zero updates, and every ratio to it none."""
    file = synthetic_logs.write(tmp_path, "one", [0.6, 0.4, 0.7]) / "eval_measurements.csv"
    file.write_text(file.read_text().replace(",10,", ",0,"))
    synthetic_logs.write(tmp_path, "nadamw", synthetic_logs.HIT)
    with pytest.raises(UsageError, match=r"one/.*trial_1 reaches the target of toy at update 0, before any training"):
        results.of(logs.read(tmp_path))


def test_minus_infinity_of_a_loss_reaches_nothing(tmp_path):
    synthetic_logs.write(tmp_path, "one", [3, float("-inf"), 0.4], metric="loss")
    assert steps(tmp_path) == [30]


def test_two_rules_for_the_best_trial(tmp_path):
    # Trial 1 reaches the target at its third evaluation, trial 2, evaluated more often, at its fourth but sooner.
    synthetic_logs.write(tmp_path, "one", [0.1, 0.2, 0.6], trial=1, seconds_per_step=1.0)
    synthetic_logs.write(tmp_path, "one", [0.1, 0.2, 0.3, 0.6], trial=2, seconds_per_step=0.5, step_hint=30)
    _align_hints(tmp_path)
    read = logs.read(tmp_path)
    measured = Measured(read, resolve.resolve(read))
    fastest = to_target.studies(measured.trials, "fastest")
    assert measured.best["seconds"].tolist() == [30.0]
    assert fastest["seconds"].tolist() == [20.0]
    differ = to_target.difference(measured.trials, measured.best, fastest)
    assert differ["excess"].tolist() == [0.5]
    assert differ.attrs["compared"] == 1


def _align_hints(root):
    for path in root.rglob("meta_data_0.json"):
        path.write_text(path.read_text().replace('"step_hint": 40', '"step_hint": 30'))


def test_median_over_studies_counts_misses_as_infinite(tmp_path):
    for study, values in enumerate(([0.6, 0.6], [0.1, 0.6], [0.1, 0.2])):
        synthetic_logs.write(tmp_path, "one", values, study=study)
        synthetic_logs.write(tmp_path, "two", values if study == 0 else [0.1, 0.2], study=study)
    read = logs.read(tmp_path)
    best = Measured(read, resolve.resolve(read)).best
    assert to_target.submissions(best, "steps")["toy"].tolist() == [20, np.inf]


def test_unequal_studies_are_told_in_one_line(tmp_path):
    for study in range(3):
        for trial in (1, 2) if study else (1,):
            synthetic_logs.write(tmp_path, "one", [0.1], study=study, trial=trial)
    read = logs.read(tmp_path)
    line = to_target.unequal(Measured(read, resolve.resolve(read)).trials)
    assert line == "unequal: 1 of 3 studies have other than 2 trials: one (1)"
