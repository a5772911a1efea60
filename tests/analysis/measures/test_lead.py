"""How far ahead a submission is at several levels."""

import pandas as pd
import pytest

from analysis.measures import lead
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


def leads(logs: Logs, targets: pd.DataFrame, *options, **more) -> pd.DataFrame:
    """`lead.table` of all the runs."""
    return lead.table(logs.runs, Measured(logs, targets).curves, targets, *options, **more)


TARGETS = pd.DataFrame({"metric": ["loss"], "lower": [True], "target": [0.0], "step_hint": [100]}, index=["w"])


def test_the_lead_is_measured_at_the_baselines_own_levels():
    logs = logs_of({"nadamw": [[9, 8, 7, 6, 5, 4, 3, 2, 1, 0]], "lawa": [[9, 6, 6, 6, 5, 1, 1, 1, 1, 1]]})
    result = leads(logs, TARGETS, "nadamw", shares=(0.4, 0.9, 1.0))
    assert list(result.loc[("w", "nadamw")]) == [1.0, 1.0, 1.0]
    ratios = result.loc[("w", "lawa")]
    assert ratios[0.4] == pytest.approx(20 / 40)  # 6 is reached at 20 rather than at 40
    assert ratios[0.9] == pytest.approx(60 / 90)
    assert pd.isna(ratios[1.0])  # 0 is never reached
    text = tables.format_leads(result, "nadamw")
    assert "| w        | lawa       | 0.50" in text
    assert "nadamw" not in text


def test_curves_are_means_over_runs():
    logs = logs_of({"nadamw": [[4, 3, 2, 1], [4, 3, 2, 1]], "lawa": [[0, 2, 2], [6, 2, 2, 0]]})
    result = leads(logs, TARGETS, "nadamw", shares=(0.2,))
    # Of the 100 updates of training nadamw has 3 at 20, a fifth, though its runs ended at 40.
    # lawa's mean is 3, 2, 2 at the steps 10, 20, 30: at 10 it is at the 3 that nadamw reaches at 20.
    assert result.loc[("w", "lawa"), 0.2] == pytest.approx(10 / 20)


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


def test_runs_that_share_no_step_are_interpolated():
    logs = with_points({"nadamw": [([10, 100], [9, 0])], "lawa": [([15, 55], [8.5, 0.5]), ([5, 45], [9.5, 1.5])]})
    result = leads(logs, TARGETS, "nadamw", shares=(1.0,))
    # nadamw ends at 0; of lawa's runs, both a fifth a step, one ends at .5: the mean never gets to 0.
    assert pd.isna(result.loc[("w", "lawa"), 1.0])
    TARGETS_40 = TARGETS.assign(step_hint=40)
    logs = with_points(
        {"nadamw": [([10, 40, 100], [9, 6, 0])], "lawa": [([15, 55], [8.5, 0.5]), ([5, 45], [9.5, 1.5])]}
    )
    # At 40 nadamw has 6. lawa has 8.5 at 15 in one run and 7.5 in the other; the next point of the two is 45.
    assert leads(logs, TARGETS_40, "nadamw", shares=(1.0,)).loc[("w", "lawa"), 1.0] == pytest.approx(45 / 40)


def test_a_run_that_broke_off_keeps_its_best():
    whole, broken = (list(range(10, 101, 10)), [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]), ([10, 20], [9, 8])
    logs = with_points({"nadamw": [whole, whole], "lawa": [whole, broken]})
    result = leads(logs, TARGETS, "nadamw", shares=(0.3, 0.5, 0.9))
    # The mean of lawa is 8 at 20 and ends at 4, the mean of 0 and 8; nadamw has 7 at 30, 5 at 50 and 1 at 90.
    assert result.loc[("w", "lawa"), 0.3] == pytest.approx(40 / 30)
    assert result.loc[("w", "lawa"), 0.5] == pytest.approx(80 / 50)
    assert pd.isna(result.loc[("w", "lawa"), 0.9])


def test_a_single_evaluation_is_enough():
    logs = with_points({"nadamw": [([100], [1])], "lawa": [([100], [1]), ([90], [0.5])]})
    result = leads(logs, TARGETS, "nadamw", shares=(0.5, 1.0))
    assert pd.isna(result.loc[("w", "nadamw"), 0.5])  # nothing is known by then
    assert result.loc[("w", "lawa"), 1.0] == 1.0


def test_in_seconds_training_lasts_as_long_as_the_baseline_would_take():
    logs = with_points({"nadamw": [(list(range(10, 51, 10)), [9, 8, 7, 6, 5])], "lawa": [([10, 20], [7, 6])]})
    logs.evaluations.loc[:, "score"] *= 3.0
    # 30 % of 100 updates of 3 s each are 90 s, where nadamw has 7.
    assert leads(logs, TARGETS, "nadamw", "seconds", (0.3,)).loc[("w", "lawa"), 0.3] == pytest.approx(30 / 90)
    # With a budget of 200 s they are 60 s, where it has 8.
    limited = TARGETS.assign(budget_s=200.0)
    assert leads(logs, limited, "nadamw", "seconds", (0.3,)).loc[("w", "lawa"), 0.3] == pytest.approx(30 / 60)
