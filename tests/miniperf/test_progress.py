"""What is said of a run at its end."""

import math
from types import SimpleNamespace

import pytest

from miniperf.progress import summary


def workload(higher: bool) -> SimpleNamespace:
    reached = (lambda r: r["validation/m"] >= 0.5) if higher else (lambda r: r["validation/m"] <= 0.5)
    return SimpleNamespace(
        target_metric_name="m", validation_target_value=0.5, has_reached_validation_target=reached
    )  # what the official API has, which does not say which way is better


@pytest.mark.parametrize(
    ("values", "higher", "expected"),
    [
        ([0.1, 0.6, 0.4], True, "best validation/m 0.6 at update 2 of 3, target 0.5 reached at update 2"),
        ([0.6, 0.45, 0.7], False, "best validation/m 0.45 at update 2 of 3, target 0.5 reached at update 2"),
        ([0.1, 0.2, 0.123456], True, "best validation/m 0.2 at update 2 of 3, target 0.5 missed"),
        ([math.nan, 0.9], False, "best validation/m 0.9 at update 2 of 2, target 0.5 missed"),
        ([math.inf, math.nan], True, "no evaluation with a validation/m"),
        ([], True, "no evaluation with a validation/m"),
    ],
)
def test_the_summary(values, higher, expected):
    evaluations = [(step, {"validation/m": value}) for step, value in enumerate(values, start=1)]
    assert summary(workload(higher), evaluations) == expected
