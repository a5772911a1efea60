"""How far ahead a submission is at several levels."""

import numpy as np
import pandas as pd
import pytest

from analysis.measures import lead
from analysis.measures.lead import Leads
from analysis.measures.to_target import Measured
from analysis.reading.logs import Logs
from analysis.report import tables


def logs_of(curves: dict[str, list[list[float]]]) -> Logs:
    """Runs of one workload evaluated at steps 10, 20, ...: per submission a list of runs, each a list of losses."""
    runs, rows = [], []
    for submission, several in curves.items():
        for study, values in enumerate(several):
            for step, value in enumerate(values, start=1):
                rows.append({"run": len(runs), "global_step": 10 * step, "score": 1.0, "validation/loss": value})
            folder = f"{submission}/study_{study}"
            runs.append({"submission": submission, "workload": "w", "study": study, "folder": folder})
    return Logs(pd.DataFrame(runs), pd.DataFrame(rows), [], pd.DataFrame())


def measured(logs: Logs, targets: pd.DataFrame, *options, **more) -> Leads:
    """`lead.table` of all the runs, from their evaluations as they are."""
    return lead.table(lead.pairs(logs.runs, Measured(logs, targets, 1).smooth, targets, *options, **more))


def leads(*options, **more) -> pd.DataFrame:
    """The ratios alone."""
    return measured(*options, **more).ratio


TARGETS = pd.DataFrame({"metric": ["loss"], "lower": [True], "target": [0.0], "step_hint": [100]}, index=["w"])


def test_the_lead_is_measured_at_the_baselines_own_levels():
    logs = logs_of({"nadamw": [[9, 8, 7, 6, 5, 4, 3, 2, 1, 0]], "lawa": [[9, 6, 6, 6, 5, 1, 1, 1, 1, 1]]})
    found = measured(logs, TARGETS, "nadamw", shares=(0.4, 0.9, 1.0))
    assert list(found.ratio.loc[("w", "nadamw")]) == [1.0, 1.0, 1.0]
    ratios = found.ratio.loc[("w", "lawa")]
    assert ratios[0.4] == pytest.approx(20 / 40)  # 6 is reached at 20 rather than at 40
    assert ratios[0.9] == pytest.approx(60 / 90)
    assert pd.isna(ratios[1.0])  # 0 is never reached
    assert found.low.isna().all(axis=None)  # of a single study
    text = tables.format_leads(found, "nadamw")
    assert "| w        | lawa       | 0.50" in text
    assert "nadamw" not in text


def test_every_run_is_compared_with_the_baselines_of_its_study():
    logs = logs_of({"nadamw": [[8, 6, 4, 2], [4, 3, 2, 1]], "lawa": [[6, 4, 2, 0], [3, 2.5, 2, 1]]})
    found = measured(logs, TARGETS, "nadamw", shares=(0.2, 0.3))
    # By a fifth of 100 updates the first has 6 and the second 3, which lawa has at 10; by 30, 4 and 2: at 20 and 30.
    assert found.ratio.loc[("w", "lawa"), 0.2] == pytest.approx(1 / 2)
    assert found.ratio.loc[("w", "lawa"), 0.3] == pytest.approx(np.sqrt(20 / 30 * 30 / 30))
    assert found.low.loc[("w", "lawa"), 0.3] < found.ratio.loc[("w", "lawa"), 0.3] < found.high.loc[("w", "lawa"), 0.3]


def test_a_run_that_never_gets_there_counts_with_the_whole_training():
    logs = logs_of({"nadamw": [[8, 6, 4, 2]], "lawa": [[8, 7, 7, 7]]})
    found = lead.pairs(logs.runs, Measured(logs, TARGETS, 1).smooth, TARGETS, "nadamw", shares=(0.2,))
    missed = found[found["submission"] == "lawa"]
    assert missed["missed"].tolist() == [True]
    assert np.exp(missed["log"].item()) == pytest.approx(100 / 20)


def with_points(runs: dict[str, list[tuple[list[int], list[float]]]]) -> Logs:
    """As `logs_of`, each run evaluated at its own steps, of a second each."""
    table, rows = [], []
    for submission, several in runs.items():
        for study, (steps, values) in enumerate(several):
            folder = f"{submission}/study_{study}"
            rows += [
                {"run": len(table), "global_step": step, "score": float(step), "validation/loss": value}
                for step, value in zip(steps, values)
            ]
            table.append({"submission": submission, "workload": "w", "study": study, "folder": folder})
    return Logs(pd.DataFrame(table), pd.DataFrame(rows), [], pd.DataFrame())


def test_crossings_are_interpolated():
    logs = with_points({"nadamw": [([10, 40, 100], [9, 6, 0])], "lawa": [([15, 55], [8.5, 0.5])]})
    # By 40 nadamw has 6. lawa falls from 8.5 to .5 between 15 and 55.
    found = leads(logs, TARGETS.assign(step_hint=40), "nadamw", shares=(1.0,))
    assert found.loc[("w", "lawa"), 1.0] == pytest.approx((15 + 40 * 2.5 / 8) / 40)


def test_a_run_that_broke_off_keeps_its_best():
    whole, broken = (list(range(10, 101, 10)), [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]), ([10, 20], [9, 5])
    logs = with_points({"nadamw": [whole], "lawa": [broken]})
    result = leads(logs, TARGETS, "nadamw", shares=(0.3, 0.5, 0.9))
    assert result.loc[("w", "lawa"), 0.3] == pytest.approx(15 / 30)
    assert result.loc[("w", "lawa"), 0.5] == pytest.approx(20 / 50)
    assert pd.isna(result.loc[("w", "lawa"), 0.9])


@pytest.mark.parametrize("unit", ["steps", "seconds"])
def test_a_level_of_the_initial_weights_is_no_level(unit):
    """Half-way the baseline is still worse than before training: no ratio there, but later on."""
    course = ([0, 40, 80], [5.0, 6.0, 3.0])
    logs = with_points({"nadamw": [course, ([0], [5.0])], "lawa": [([0, 20, 40], [5.5, 4.0, 3.0]), ([0], [5.0])]})
    found = measured(logs, TARGETS, "nadamw", unit, shares=(0.5, 0.9))
    assert list(found.ratio.columns) == [0.9]
    assert found.ratio.loc[("w", "lawa"), 0.9] == 0.5


def test_the_first_update_of_a_run_that_starts_better_is_not_divided_by():
    logs = with_points({"nadamw": [([0, 40], [5.0, 4.0])], "lawa": [([0, 40], [4.0, 3.0])]})
    found = lead.pairs(logs.runs, Measured(logs, TARGETS, 1).smooth, TARGETS, "nadamw", shares=(0.5,))
    assert found["submission"].tolist() == ["nadamw"]
    assert np.isfinite(found["log"]).all()


def test_a_single_evaluation_is_enough():
    logs = with_points({"nadamw": [([100], [1])], "lawa": [([90], [0.5])]})
    result = leads(logs, TARGETS, "nadamw", shares=(0.5, 1.0))
    assert list(result) == [1.0]  # nothing is known by the half
    assert result.loc[("w", "lawa"), 1.0] == pytest.approx(0.9)


def test_in_seconds_training_lasts_as_long_as_the_baseline_would_take():
    logs = with_points({"nadamw": [(list(range(10, 51, 10)), [9, 8, 7, 6, 5])], "lawa": [([10, 20], [7, 6])]})
    logs.evaluations.loc[:, "score"] *= 3.0
    # 30 % of 100 updates of 3 s each are 90 s, where nadamw has 7.
    assert leads(logs, TARGETS, "nadamw", "seconds", (0.3,)).loc[("w", "lawa"), 0.3] == pytest.approx(30 / 90)
    # With a budget of 200 s they are 60 s, where it has 8.
    limited = TARGETS.assign(budget_s=200.0)
    assert leads(logs, limited, "nadamw", "seconds", (0.3,)).loc[("w", "lawa"), 0.3] == pytest.approx(30 / 60)
