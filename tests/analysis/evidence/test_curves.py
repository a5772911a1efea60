"""The learning curves of the evidence, on made runs whose answers are known."""

import numpy as np
import pytest

from analysis.evidence import curves, data
from analysis.evidence.curves import Line
from analysis.evidence.data import RAW
from analysis.evidence.summaries import CONSTANT, DECAY, PRIMARY
from tests.analysis.evidence.test_evidence import STEPS, loss, made


@pytest.fixture
def evidence(tmp_path):
    """On images the growing average needs .5, .6, .7 of the raw updates; on text it misses the target twice."""
    for seed, ratio in enumerate((0.5, 0.6, 0.7)):
        made(tmp_path / "runs", "mini_imagenet_vit", seed, ratio, accuracy=True)
        made(tmp_path / "runs", "mini_imagenet_vit", seed, ratio, accuracy=True, variant=CONSTANT)
        made(tmp_path / "runs", "mini_wmt", seed, 2.5 if seed else 1.0, at_end=-6.0 if seed else 0.0)
    data.collect(tmp_path / "runs", tmp_path / "data")
    return data.load(tmp_path / "data")


def drawn(axis, colour):
    return [line for line in axis.get_lines() if line.get_color() == colour]


def test_lines_are_means_over_seeds_and_bars_stand_where_targets_are_reached(evidence):
    runs = evidence.of("A", DECAY)
    figure = curves.learning_curves([Line(runs, RAW), Line(runs, PRIMARY)])
    images, text = figure.axes
    line, bar = drawn(images, curves.COLOURS[PRIMARY])
    values = dict(zip(line.get_xdata(), line.get_ydata()))
    assert values[400] == pytest.approx(np.mean([-loss(400, 1 / ratio) for ratio in (0.5, 0.6, 0.7)]))
    assert bar.get_xdata() == pytest.approx(0.6 * STEPS / 2, rel=0.02)  # the raw weights reach it half-way
    assert bar.get_ydata() == [-5.0]
    assert len(drawn(text, curves.COLOURS[RAW])) == 2
    (missed,) = drawn(text, curves.COLOURS[PRIMARY])  # two of three seeds do not reach it: a curve, and no bar
    assert len(missed.get_xdata()) > 2


def test_axes_say_which_way_is_better_and_begin_late_enough(evidence):
    figure = curves.learning_curves([Line(evidence.of("A", DECAY), RAW)])
    images, text = figure.axes
    assert images.get_ylabel().endswith("(higher is better)")
    assert text.get_ylabel().endswith("(lower is better)")
    for axis, way in ((images, 1), (text, -1)):
        ends = axis.get_ylim()
        assert ends[0] < ends[1]
        worst = ends[0] if way == 1 else ends[1]
        assert worst == pytest.approx(-way * loss(0.16 * STEPS), abs=0.11)  # the first evaluation after 15 %


def test_runs_of_another_schedule_stand_beside_and_may_lack_a_workload(evidence):
    decay, constant = evidence.of("A", DECAY), evidence.of("A", CONSTANT)
    figure = curves.learning_curves([Line(decay, RAW, "decayed,", "--"), Line(constant, PRIMARY, "constant rate,")])
    images, text = figure.axes
    assert drawn(images, curves.COLOURS[PRIMARY])
    assert not drawn(text, curves.COLOURS[PRIMARY])
    (legend,) = figure.legends
    assert [entry.get_text() for entry in legend.get_texts()] == [
        "decayed, raw", "constant rate, growing, 15 %", "validation target", "mean updates to the target",
        "lowest to highest seed",
    ]  # fmt: skip
