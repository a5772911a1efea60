"""The submissions whose average covers a constant share of the updates so far."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest

from submissions.recipe.averaging import growing
from tests.support.jax_runs import POINT
from tests.support.submission_runs import Run
from weight_averaging.averages import Growing


@pytest.mark.parametrize("framework", ["pytorch", "jax"])
@pytest.mark.parametrize("name", ["ema_growing", "ema_growing_no_decay"])
def test_evaluations_see_the_average_of_their_equation(framework, name):
    submission = importlib.import_module(f"submissions.{framework}.{name}.submission")
    run = Run(submission, framework, {**POINT, "averaging_share": 0.4, "averaging_interval": 2})
    taken = []
    for step in range(1, 16):
        raw = run.update().weights()
        if step % 2 == 0:
            taken.append(raw)
        run.prepare()
        expected = Growing(share=0.4).coefficients(len(taken)) @ np.array(taken) if taken else raw
        counters = np.isclose(raw, step)  # of batch norm in PyTorch: whole numbers are not averaged
        np.testing.assert_allclose(run.weights()[~counters], expected[~counters], rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("framework", ["pytorch", "jax"])
def test_without_hyperparameters(framework):
    submission = importlib.import_module(f"submissions.{framework}.ema_growing_self.submission")
    run = Run(submission, framework, None)
    raw = run.update(9).weights()
    assert (run.prepare().weights() != raw).any()


def test_snapshots_come_as_often_as_those_of_the_papers_horizon_unless_told():
    assert growing.describe(SimpleNamespace(averaging_share=0.15), 60_000) == Growing(share=0.15, interval=30)
    told = SimpleNamespace(averaging_share=0.15, averaging_interval=7)
    assert growing.describe(told, 60_000) == Growing(share=0.15, interval=7)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "a growing average takes averaging_share and, if at all, averaging_interval; this has none of them"),
        ({"averaging_share": 0.1, "averaging_window": 3}, "this has averaging_share, averaging_window"),
        ({"averaging_share": 2}, "averaging_share must be in"),
        ({"averaging_share": 0.1, "averaging_interval": 0}, "averaging_interval must be"),
    ],
)
def test_hyperparameters_that_cannot_be(given, message):
    with pytest.raises(ValueError, match=message):
        growing.describe(SimpleNamespace(**given), 1000)
