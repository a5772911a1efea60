"""What figures show: bars at targets, misses by name, bounds as hollow marks, a colour for each submission."""

import itertools

import numpy as np
import pandas as pd
import pytest

from analysis.figures import learning_curves, panels, ratios, style
from analysis.measures import results
from analysis.reading.logs import read
from tests.support import synthetic_logs
from tests.support.synthetic_logs import write_runs


def test_learning_curves_mark_targets_and_misses(tmp_path):
    write_runs(tmp_path)
    found = results.of(read(tmp_path))
    figure = learning_curves.learning_curves(found.measured.curves, found.targets, found.best, "nadamw", "steps")
    toy, two = figure.axes
    bars = {line.get_xdata()[0] for line in toy.lines if line.get_marker() == "|"}
    assert bars == {95.0, 55.0, 60.0}
    assert two.get_title() == "toy_two, target 0.3"
    assert [text.get_text() for text in two.texts] == ["missed in some studies: ema 1/2"]
    assert sum(line.get_marker() == "|" for line in two.lines) == len(toy.collections) - 1  # all but ema
    assert [line.get_label() for line in two.lines if line.get_linestyle() == "--"] == ["validation target"]
    assert len(toy.collections) == 3  # a band each


def test_of_many_who_miss_the_panel_tells_how_many_and_the_legend_gets_its_room(tmp_path):
    for value in range(12):
        for seed in range(2):
            values = [0.1, 0.9 if value == 0 or (value == 1 and seed) else 0.2]
            synthetic_logs.write(tmp_path, f"lawa_with_a_long_name_{value}", values, study=seed)
    synthetic_logs.write(tmp_path, "nadamw", [0.1, 0.9])
    found = results.of(read(tmp_path))
    figure = learning_curves.learning_curves(found.measured.curves, found.targets, found.best, "nadamw", "steps")
    assert [text.get_text() for text in figure.axes[0].texts] == ["10 of 13 missed, 1 more in some studies"]
    figure.draw_without_rendering()
    legend, panel = figure.legends[0].get_window_extent(), figure.axes[0].get_tightbbox()
    assert legend.y1 <= panel.y0
    assert panel.height > 200  # not squeezed


def test_speedups_show_bounds_as_hollow(tmp_path):
    write_runs(tmp_path)
    found = results.of(read(tmp_path))
    figure = ratios.speedups({"ema": found.ratios["ema"]}, "nadamw")
    points = [line for line in figure.axes[0].lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert [point.get_markerfacecolor() == "white" for point in points] == [False, True, True]  # toy, toy_two, all


def test_colours_of_many_submissions_are_told_apart():
    looks = style.looks([f"s{i}" for i in range(20)], "s0")
    assert looks["s0"] == ("#000000", "-")
    assert len(set(looks.values())) == 20


def test_a_submission_has_one_colour_on_every_page():
    alone = style.looks(["lawa", "nadamw"], "nadamw")
    among = style.looks(["other", "ema", "lawa_no_decay", "nadamw_no_decay", "lawa", "nadamw"], "nadamw")
    assert among["lawa"] == alone["lawa"]
    assert among["nadamw"] == alone["nadamw"] == ("#000000", "-")
    assert among["lawa_no_decay"] == (alone["lawa"][0], "--")
    assert among["nadamw_no_decay"] == ("#000000", "--")
    assert len(set(among.values())) == 6
    assert style.looks(["adamw", "adamw_lawa"], "adamw")["adamw_lawa"] == alone["lawa"]
    # The points of a grid are told apart.
    grid = style.looks(["nadamw", *(f"lawa, window={n}" for n in (5, 10, 20))], "nadamw")
    assert len({colour for colour, _ in grid.values()}) == 4
    # A baseline of other people is black, and nothing else is.
    foreign = style.looks(["prize", "adamw", "lawa"], "prize")
    assert [name for name, (colour, _) in foreign.items() if colour == "#000000"] == ["prize"]


def _legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_every_mark_is_in_the_legend_and_axes_say_which_way_is_better(tmp_path):
    write_runs(tmp_path)
    found = results.of(read(tmp_path))
    figure = learning_curves.learning_curves(found.measured.curves, found.targets, found.best, "nadamw", "steps")
    said = _legend(figure)
    assert {"validation target", "lowest to highest study", "mean updates to target"} <= set(said)
    assert len(said) == len(set(said)) == 3 + found.best["submission"].nunique()
    lower = dict(zip(found.targets.index, found.targets["lower"]))
    for axis, workload in zip(figure.axes, found.targets.index):
        assert axis.get_ylabel().endswith("(lower is better)" if lower[workload] else "(higher is better)")
    bounds = _legend(ratios.speedups({"ema": found.ratios["ema"]}, "nadamw"))
    assert "95 % interval" in bounds
    assert any(text.startswith("hollow") for text in bounds)


def test_marks_at_the_target_of_one_colour_are_told_apart(tmp_path):
    for name in ("nadamw", "lawa", "lawa_no_decay"):
        synthetic_logs.write(tmp_path, name, [0.1, 0.9])
    found = results.of(read(tmp_path))
    figure = learning_curves.learning_curves(found.measured.curves, found.targets, found.best, "nadamw", "steps")
    keys = dict(zip(_legend(figure), figure.legends[0].legend_handles))
    assert keys["lawa"].get_color() == keys["lawa_no_decay"].get_color()
    assert keys["lawa"].get_marker() != keys["lawa_no_decay"].get_marker()


def _grid():
    targets = pd.DataFrame({"metric": "wer", "lower": True, "target": 0.1}, index=["some", "none"])
    runs = itertools.product(targets.index, ["nadamw", "lawa, window=5", "lawa, window=20"], [0.01, 0.02], range(2))
    rows = pd.DataFrame(runs, columns=["workload", "line", "x", "study"])
    rows["steps"] = np.where((rows["workload"] == "none") | (rows["x"] == 0.02), np.inf, 100.0 + rows["study"])
    return rows, targets


def test_crosses_of_missed_targets_lie_apart_and_are_in_the_legend():
    rows, targets = _grid()
    figure = panels.against(rows, "nadamw", targets, "steps", "learning rate", "line")
    some, none = figure.axes
    for axis, many in ((some, 1), (none, 2)):
        crosses = [line for line in axis.lines if line.get_marker() == panels.MISS]
        assert [len(line.get_xdata()) for line in crosses] == [many] * 3
        assert len({height for line in crosses for height in line.get_ydata()}) == 3
    assert "target missed by a seed or more" in _legend(figure)
    assert "lowest to highest seed" in _legend(figure)
    # A panel without any hit has no numbers that nobody measured.
    assert list(none.get_yticks()) == []
    assert [text.get_text() for text in none.texts] == ["target missed throughout"]
    assert len(some.get_yticks()) > 1


def test_equal_profiles_lie_side_by_side():
    profile = pd.DataFrame([[0.5, 1.0]] * 3, index=["lawa", "ema", "nadamw"], columns=[1.0, 2.0])
    scores = pd.Series(1.0, index=profile.index)
    (axis,) = learning_curves.performance_profiles(profile, scores, "nadamw", "steps").axes
    heights = [line.get_ydata()[-1] for line in axis.lines]
    assert heights == sorted(heights, reverse=True)
    assert len(set(heights)) == 3
    assert heights[1] == pytest.approx(1.0)
    assert heights[0] - heights[2] < 0.02


@pytest.mark.parametrize(("count", "empty"), [(1, 0), (3, 0), (5, 1), (6, 0), (7, 1), (8, 0), (9, 0)])
def test_panels_leave_few_places_empty(count, empty):
    figure, axes = style.panels(count)
    assert len(axes) == count
    assert len(figure.axes) - count == empty
    style.plt.close(figure)
