"""Where curves cross a level, whatever the grid of evaluations and the noise."""

import numpy as np
import pytest

from analysis.measures import crossing, to_target
from analysis.measures.to_target import Measured
from analysis.reading import logs
from analysis.targets import resolve
from tests.support import synthetic_logs


def test_it_is_interpolated():
    points = np.array([10.0, 20.0, 30.0])
    assert crossing.first(points, np.array([0.1, 0.4, 0.6]), 0.5, lower=False) == pytest.approx(25)
    assert crossing.first(points, np.array([3.0, 2.0, 1.0]), 1.5, lower=True) == pytest.approx(25)
    assert crossing.first(points, np.array([0.6, 0.4, 0.6]), 0.5, lower=False) == 10
    assert crossing.first(points, np.array([0.1, 0.2, 0.3]), 0.5, lower=False) == np.inf
    assert crossing.first(points[:0], points[:0], 0.5, lower=False) == np.inf


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 12])
@pytest.mark.parametrize("median_of", [1, 3, 5, 9])
def test_a_curve_that_only_rises_or_falls_stays_as_it_is(count, median_of):
    values = np.sort(np.random.default_rng(0).normal(size=count))
    assert (crossing.smooth(values, median_of) == values).all()
    assert (crossing.smooth(-values, median_of) == -values).all()


def test_smoothing_is_a_median_in_the_middle():
    values = np.array([0.0, 9.0, 1.0, 2.0, -9.0, 3.0, 4.0])
    # Ends as they are, medians of three beside them, of five within.
    assert crossing.smooth(values, 5).tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 4.0]
    assert crossing.smooth(values, 1).tolist() == values.tolist()


def test_the_grid_matters_less_on_a_noisy_curve():
    """A curve as noisy as MRI's: neighbouring evaluations differ by what a tenth of training gains."""
    random = np.random.default_rng(0)
    steps = np.arange(20, 2001, 20.0)
    curves = 1 - np.exp(-steps / 800) + 0.08 * random.normal(size=(400, len(steps)))

    def of_grid(every: int, median_of: int) -> np.ndarray:
        """Crossings of the level that the curve itself has at 620 updates."""
        points, level = steps[every - 1 :: every], 1 - np.exp(-620 / 800)
        rows = [crossing.smooth(row, median_of) for row in curves[:, every - 1 :: every]]
        return np.array([crossing.first(points, row, level, lower=False) for row in rows])

    def between(median_of: int) -> float:
        """What half as many evaluations add to the crossing, in the mean."""
        return float(np.log(of_grid(2, median_of) / of_grid(1, median_of)).mean())

    assert between(1) > 0.05
    assert abs(between(5)) < 0.5 * between(1)
    assert np.log(of_grid(2, 5)).std() < np.log(of_grid(2, 1)).std()
    assert abs(np.log(of_grid(2, 5).mean() / 620)) < abs(np.log(of_grid(2, 1).mean() / 620))


def test_both_figures_stand_in_the_table(tmp_path):
    synthetic_logs.write(tmp_path, "one", [0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8])
    synthetic_logs.write(tmp_path, "lucky", [0.1, 0.6, 0.2, 0.3, 0.4, 0.4, 0.45])
    read = logs.read(tmp_path)
    trials = Measured(read, resolve.resolve(read)).trials.set_index("submission")
    assert trials.loc["one", ["steps", "crossed_steps", "crossed_seconds"]].tolist() == pytest.approx([50, 45, 4.5])
    # One lucky evaluation is at the target by the official rule, and not by the median.
    assert trials.loc["lucky", ["steps", "crossed_steps"]].tolist() == [20, np.inf]
    rows = to_target.interpolated(trials)
    assert rows.loc["one", "steps"] == pytest.approx(45)
    assert rows["reached"].to_dict() == {"one": True, "lucky": False}
