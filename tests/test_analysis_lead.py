"""How far ahead a submission is at several levels."""

import pandas as pd
import pytest

from analysis import lead
from analysis.logs import Logs


def logs_of(curves: dict[str, list[list[float]]]) -> Logs:
    """Runs of one workload evaluated at steps 10, 20, ...: per submission a list of runs, each a list of losses."""
    runs, rows = [], []
    for submission, several in curves.items():
        for study, values in enumerate(several):
            for step, value in enumerate(values, start=1):
                rows.append({"run": len(runs), "global_step": 10 * step, "score": 1.0, "validation/loss": value})
            runs.append({"submission": submission, "workload": "w", "study": study})
    return Logs(pd.DataFrame(runs), pd.DataFrame(rows), [], pd.DataFrame())


TARGETS = pd.DataFrame({"metric": ["loss"], "lower": [True], "target": [0.0]}, index=["w"])


def test_the_lead_is_measured_at_the_baselines_own_levels():
    logs = logs_of({"nadamw": [[9, 8, 7, 6, 5, 4, 3, 2, 1, 0]], "lawa": [[9, 6, 6, 6, 5, 1, 1, 1, 1, 1]]})
    result = lead.table(logs, TARGETS, "nadamw", shares=(0.4, 0.9, 1.0))
    assert list(result.loc[("w", "nadamw")]) == [1.0, 1.0, 1.0]
    ratios = result.loc[("w", "lawa")]
    assert ratios[0.4] == pytest.approx(20 / 40)  # 6 is reached at 20 rather than at 40
    assert ratios[0.9] == pytest.approx(60 / 90)
    assert pd.isna(ratios[1.0])  # 0 is never reached
    text = lead.format_table(result, "nadamw")
    assert "| w        | lawa       | 0.50" in text
    assert "nadamw" not in text


def test_curves_are_means_over_the_runs_where_all_have_evaluated():
    logs = logs_of({"nadamw": [[4, 3, 2, 1], [4, 3, 2, 1]], "lawa": [[0, 2, 2], [6, 2, 2, 0]]})
    result = lead.table(logs, TARGETS, "nadamw", shares=(0.5,))
    # lawa's mean is 3, 2, 2 at the steps 10, 20, 30: at 10 it is at the 3 that nadamw reaches at 20.
    assert result.loc[("w", "lawa"), 0.5] == pytest.approx(10 / 20)
