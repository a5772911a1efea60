"""Bands of learning curves, and the part of them that is shown."""

import numpy as np
import pandas as pd
import pytest

from analysis.measures import curves


def test_a_band_of_curves_with_other_points():
    one = pd.DataFrame({"steps": [0.0, 10.0, 20.0], "value": [0.0, 1.0, 2.0]})
    two = pd.DataFrame({"steps": [0.0, 5.0, 15.0, 20.0], "value": [2.0, 2.0, 2.0, 2.0]})
    points, mean, low, high = curves.band([one, two], "steps")
    assert points.tolist() == [0, 5, 10, 15, 20]
    assert low.tolist() == [0, 0.5, 1, 1.5, 2]
    assert high.tolist() == [2] * 5
    assert mean.tolist() == [1, 1.25, 1.5, 1.75, 2]


def test_a_band_goes_on_while_half_of_the_runs_do():
    long = pd.DataFrame({"steps": [0.0, 10.0, 20.0], "value": [1.0, 1.0, 1.0]})
    short = long.iloc[:2].assign(value=3.0)
    assert curves.band([long, short, short.iloc[:0]], "steps")[1].tolist() == [2, 2, 1]
    assert curves.band([long, short, short], "steps")[0].tolist() == [0, 10]
    assert curves.band([short.iloc[:0]], "steps")[0].tolist() == []


def test_one_submission_that_diverged_does_not_flatten_the_others():
    good = pd.DataFrame({"steps": range(20), "value": np.linspace(0.3, 0.1, 20)})
    of_runs = {"a": good, "b": good, "c": good, "d": good.assign(value=1e6), "e": good.assign(value=np.nan)}
    best = pd.DataFrame({"submission": list(of_runs), "folder": list(of_runs)})
    low, high = curves.interesting_range(best, of_runs, lower=True, target=0.2)
    assert 0.05 < low < 0.1
    assert 0.25 < high < 1
    assert curves.interesting_range(best[-1:], of_runs, lower=True, target=0.15) == pytest.approx((0.1485, 0.1515))
