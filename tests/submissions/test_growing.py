"""The submissions whose average covers a constant share of the updates so far."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest

from submissions.recipe.averaging import follows_rate, growing
from submissions.recipe.schedules import warmup_cosine
from tests.support import reference
from tests.support.jax_runs import POINT
from tests.support.submission_runs import Run
from weight_averaging.averages import FollowsRate, Growing


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
def test_the_share_follows_the_schedules_rate(framework):
    """That of the update itself, over the top of the schedule: also while it is warmed up."""
    submission = importlib.import_module(f"submissions.{framework}.ema_follows_rate.submission")
    point = {**POINT, "warmup_factor": 0.3, "averaging_share": 0.4, "averaging_interval": 2}
    run, taken, rates = Run(submission, framework, point), [], []
    for step in range(1, run.workload.step_hint + 3):
        raw = run.update().weights()
        if step % 2 == 0:
            taken.append(raw)
            rates.append(warmup_cosine(step - 1, run.workload.step_hint, run.hyperparameters))
        run.prepare()
        expected = reference.follows_rate(rates, 0.4, top=1.0) @ np.array(taken) if taken else raw
        counters = np.isclose(raw, step)
        np.testing.assert_allclose(run.weights()[~counters], expected[~counters], rtol=4e-6, atol=1e-6)
    assert rates[-1] == 0.0
    assert min(np.diff(rates)) < 0 < max(np.diff(rates))


@pytest.mark.parametrize("framework", ["pytorch", "jax"])
def test_without_hyperparameters(framework):
    submission = importlib.import_module(f"submissions.{framework}.ema_growing_self.submission")
    run = Run(submission, framework, None)
    raw = run.update(9).weights()
    assert (run.prepare().weights() != raw).any()


def test_snapshots_come_as_often_as_those_of_the_papers_horizon_unless_told():
    assert growing.describe(SimpleNamespace(averaging_share=0.15), 60_000) == Growing(share=0.15, interval=30)
    annealed = SimpleNamespace(averaging_share=0.15, learning_rate=0.02)
    assert follows_rate.describe(annealed, 60_000) == FollowsRate(share=0.15, interval=30, top_rate=0.02)
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
