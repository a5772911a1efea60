"""The picture of docs/growing.md is drawn of the numbers that are committed, and every line of it is in the legend."""

import numpy as np
import pytest
from matplotlib.lines import Line2D

from analysis.evidence import growing
from analysis.evidence.data import load
from scripts import picture


@pytest.mark.parametrize("name", list(growing.LINES))
@pytest.mark.parametrize("share", list(growing.AT))
def test_the_weights_are_those_of_the_library_and_add_up(name, share):
    rates = np.linspace(1.0, 0.0, growing.SNAPSHOTS)[: round(share * growing.SNAPSHOTS)]
    weights = growing.weights(name, list(rates)) / growing.SNAPSHOTS
    assert weights.sum() == pytest.approx(1.0)
    age = float(weights @ np.arange(len(weights) - 1, -1, -1))
    of_rate = 1.0 if name == "growing_15" else np.sqrt(rates[-1])
    assert age == pytest.approx(growing.SHARE / 2 * len(weights) * of_rate, abs=0.7)


def test_every_line_is_in_the_legend(tmp_path):
    runs = load(picture.DATA).of("A", "nadamw")
    figure = growing.picture([1.0] * growing.SNAPSHOTS, [runs["mini_criteo1tb"][0]])
    (legend,) = figure.legends
    known = {(line.get_color(), line.get_linestyle()) for line in legend.get_lines()}
    first, curves = figure.axes
    assert {(line.get_color(), line.get_linestyle()) for line in curves.get_lines()} <= known
    colours, styles = {colour for colour, _ in known}, {style for _, style in known}
    assert {line.get_color() for line in first.get_lines()} <= colours
    assert {line.get_linestyle() for line in first.get_lines()} <= styles
    drawn = [line for line in curves.get_lines() if isinstance(line, Line2D)]
    assert len(drawn) == len(growing.SHOWN)
    raw = runs["mini_criteo1tb"][0].table
    assert drawn[0].get_ydata()[-1] == raw["validation"].iloc[-1]
    picture.draw_growing(tmp_path / "growing")
    assert (tmp_path / "growing.png").stat().st_size > 50_000
