"""What figures show: bars at targets, misses by name, bounds as hollow marks, a colour for each submission."""

from analysis.figures import learning_curves, ratios, style
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
    assert [text.get_text() for text in two.texts] == ["in some studies: ema 1/2"]
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
