"""Comparisons: the committed files, what is said of bad ones, and their figures on made-up logs."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import yaml

from analysis.comparisons import draw
from analysis.comparisons.comparison import MERGES, load
from analysis.measures import horizon
from analysis.measures.to_target import Measured
from analysis.reading import logs
from analysis.targets import resolve
from tests.support import ROOT, synthetic_logs
from weight_averaging.errors import UsageError

MEASURED = ("steps_to_target", "crossed", "final", "best", "gain")
FILES = sorted((ROOT / "comparisons").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_committed_comparisons_load_and_their_submissions_exist(file):
    comparison = load(file)
    for submission in comparison.submissions:
        assert submission in MERGES or (ROOT / "submissions/pytorch" / submission / "submission.py").is_file()
        space = comparison.search_space(submission)
        grid = comparison.grid.get(submission, {})
        assert len(space) == len(comparison.points(submission)) * np.prod([len(v) for v in grid.values()], dtype=int)
        assert len({tuple(sorted(point.items())) for point in space}) == len(space)
        assert len({frozenset(point) for point in space}) == 1  # the official form wants the same names in each point


def test_every_experiment_has_a_comparison():
    covered = " ".join(load(file).paper for file in FILES)
    for experiment in (
        "Fig. 1 ",
        "2,",
        "Fig. 3 ",
        "Fig. 4 ",
        "6",
        "7a",
        "7b",
        "Fig. 8",
        "10",
        "Fig. 11",
        "12",
        "Tables 1 and 2",
        "Section 7, Table 4, Fig. 9 and 13",
        "Fig. 9 and 14",
        "Table 3",
    ):
        assert experiment in covered


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_committed_comparisons_can_be_drawn(file, tmp_path):
    comparison = load(file)
    synthetic_logs.write_comparison(tmp_path / "runs", comparison, seeds=2, workloads=comparison.workloads or ("toy",))
    selected = draw.select(logs.read(tmp_path / "runs"), comparison)
    written = draw.draw(comparison, Measured(selected, resolve.resolve(selected)), tmp_path / "out")
    assert {path.stem for path in written} == {figure["name"] for figure in comparison.figures}
    (numbers,) = (path for path in written if path.suffix == ".csv")  # by seed, to be committed beside the page
    table = pd.read_csv(numbers)
    assert len(table) == len(selected.runs)
    assert len(table.drop_duplicates([name for name in table if name not in MEASURED])) == len(table)  # told apart
    assert set(MEASURED) <= set(table)
    assert all(path.stat().st_size > (5000 if path.suffix in (".png", ".pdf") else 100) for path in written)


def test_what_several_figures_are_made_of_is_worked_out_once(tmp_path, monkeypatch):
    comparison = load(ROOT / "comparisons/lawa_horizon.yaml")
    synthetic_logs.write_comparison(tmp_path / "runs", comparison, seeds=2, workloads=("toy",))
    selected = draw.select(logs.read(tmp_path / "runs"), comparison)
    shares, measure = [], horizon.measure
    monkeypatch.setattr(horizon, "measure", lambda *given: shares.append(given[-1]) or measure(*given))
    draw.draw(comparison, Measured(selected, resolve.resolve(selected)), tmp_path / "out")
    assert shares == [1.0, 0.5]


def test_points_of_a_grid_become_submissions(tmp_path):
    content = yaml.safe_load((ROOT / "comparisons/learning_rate.yaml").read_text())
    del content["trials"]
    content["grid"] = {name: {"learning_rate": [0.0005, 0.001, 0.01]} for name in content["submissions"]}
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(content))
    comparison = load(path)
    synthetic_logs.write_comparison(tmp_path / "runs", comparison, seeds=1)
    selected = draw.select(logs.read(tmp_path / "runs"), comparison)
    assert selected.runs["submission"].nunique() == 2 * 3
    assert "lawa, learning_rate=0.01" in set(selected.runs["submission"])
    assert draw.baseline_arm(comparison, selected) == "nadamw, learning_rate=0.001"  # the search space's first


def test_the_trials_of_a_comparison_are_the_tuned_ones_or_their_neighbours_too_or_all():
    grid = load(ROOT / "comparisons/language_model_grid.yaml")
    baseline = grid.baseline
    assert grid.trials(baseline, tuned=3) == list(range(1, len(grid.points(baseline)) + 1))
    rates = load(ROOT / "comparisons/learning_rate.yaml")  # two averages at each point
    assert rates.trials("nadamw", tuned=3) == [2, 3, 4]
    assert rates.trials("lawa", tuned=3) == [3, 4, 5, 6, 7, 8]
    assert rates.trials("nadamw", tuned=1) == [1, 2]  # at the edge
    assert rates.trials("nadamw", tuned=6) == [5, 6]
    finals = load(ROOT / "comparisons/final_learning_rate.yaml")  # three values at each point, two averages
    assert finals.trials("nadamw", tuned=2) == [4, 5, 6]
    assert finals.trials("lawa", tuned=2) == [7, 8, 9, 10, 11, 12]
    chosen = [finals.search_space("lawa")[trial - 1] for trial in finals.trials("lawa", tuned=2)]
    assert {point["learning_rate"] for point in chosen} == {finals.points("lawa")[1]["learning_rate"]}
    assert [point["final_lr_factor"] for point in chosen] == [1.0, 1.0, 0.5, 0.5, 0.0, 0.0]


@pytest.mark.parametrize("name", ["final_learning_rate", "shorter_schedules"])
def test_windows_are_lines_of_their_own(tmp_path, name):
    comparison = load(ROOT / f"comparisons/{name}.yaml")
    windows = range(1, 9)  # more than there are colours
    comparison = dataclasses.replace(
        comparison, grid=comparison.grid | {"lawa": comparison.grid["lawa"] | {"averaging_window": list(windows)}}
    )
    synthetic_logs.write_comparison(tmp_path, comparison, seeds=1, workloads=("toy",))
    selected = draw.select(logs.read(tmp_path), comparison)
    drawing = draw.Drawing(comparison, Measured(selected, resolve.resolve(selected)))
    option = next(figure for figure in comparison.figures if figure["kind"] in ("sweep", "shorter"))
    options = {key: value for key, value in option.items() if key in ("x", "y")}
    labels = getattr(drawing, option["kind"])(**options).axes[0].get_legend_handles_labels()[1]
    assert {f"lawa, interval=5, window={window}" for window in windows} <= set(labels)
    assert "nadamw" in labels


def test_null_leaves_a_hyperparameter_out():
    comparison = load(ROOT / "comparisons/ema_horizon.yaml")
    space = comparison.search_space("ema")
    assert len(space) == 8 * len(comparison.points("ema"))
    assert all("averaging_horizon" not in point and "averaging_interval" in point for point in space)


def test_offline_points_know_the_run_that_they_average():
    comparison = load(ROOT / "comparisons/final_learning_rate.yaml")
    for trial in comparison.trials("lawa", tuned=2):
        averaged, trained = comparison.search_space("lawa")[trial - 1], comparison.search_space("nadamw")
        source = trained[comparison.source("lawa", trial) - 1]
        assert {name: value for name, value in averaged.items() if not name.startswith("averaging_")} == source


def test_a_merge_takes_the_search_space_of_what_it_merges():
    comparison = load(ROOT / "comparisons/merges.yaml")
    assert comparison.averaged("nadamw") is None
    assert comparison.averaged("merge_no_decay") == "nadamw_no_decay"
    merges, trained = (comparison.search_space(name) for name in ("merge_no_decay", "nadamw_no_decay"))
    shares = len(comparison.grid["merge_no_decay"]["averaging_share"]) * len(
        comparison.grid["merge_no_decay"]["averaging_shape"]
    )
    assert len(merges) == shares * len(trained)
    assert merges[0] == {**trained[0], "averaging_shape": "linear", "averaging_share": 0.1, "averaging_interval": 10}


def test_a_workload_of_the_comparison_without_runs_is_named(tmp_path):
    comparison = _load(tmp_path, workloads=["toy", "other"])
    synthetic_logs.write_comparison(tmp_path / "runs", comparison, seeds=1)
    with pytest.raises(UsageError, match="no run of other; there are toy, toy_two"):
        draw.select(logs.read(tmp_path / "runs"), comparison)


@pytest.mark.parametrize("path", sorted((ROOT / "comparisons").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_average_of_an_offline_comparison_has_its_run(path):
    comparison = load(path)
    for name in filter(comparison.averaged, comparison.submissions):
        for trial, point in enumerate(comparison.search_space(name), start=1):
            source = comparison.search_space(comparison.averaged(name))[comparison.source(name, trial) - 1]
            assert source == {key: value for key, value in point.items() if not key.startswith("averaging_")}


GOOD = {
    "title": "t", "paper": "Fig. 0", "question": "?", "submissions": ["nadamw", "lawa"], "workloads": "all", "seeds": 1,
    "search_spaces": "tuning_search_spaces/miniperf", "figures": [{"name": "f", "kind": "curves"}],
}  # fmt: skip


def _load(folder, **changes):
    content = {key: value for key, value in {**GOOD, **changes}.items() if value is not ...}
    (folder / "s.yaml").write_text(yaml.safe_dump(content))
    return load(folder / "s.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ...}, r"s\.yaml: the field seeds is missing"),
        ({"seed": 3}, "unknown field seed; there are title"),
        ({"seeds": 0}, "seeds must be a whole number >= 1, not 0"),
        ({"title": 3}, "title must be text, not 3"),
        ({"submissions": "nadamw"}, "submissions must be a list of names, not 'nadamw'"),
        ({"submissions": ["a", "a"]}, "submissions names a twice"),
        ({"workloads": "some"}, "workloads must be a list of names or `all`, not 'some'"),
        ({"grid": {"ema": {"x": [1]}}}, "'ema' is not among the submissions nadamw, lawa"),
        ({"grid": {"lawa": {"x": 1}}}, "lawa: x must be a list of values, not 1"),
        ({"offline": 2}, "offline must be true or false, not 2"),
        (
            {"offline": True, "submissions": ["nadamw", "lawa_no_decay"]},
            "offline: lawa_no_decay averages runs of nadamw_no_decay: name it among the submissions",
        ),
        (
            {"offline": True, "submissions": ["lawa", "nadamw"]},
            "offline: the baseline, named first, must be trained; lawa is an average",
        ),
        (
            {"submissions": ["nadamw_no_decay", "merge_no_decay"]},
            "merge_no_decay is made of snapshots: say offline: true",
        ),
        (
            {"figures": [{"name": "f", "kind": "heatmap", "until": 2}]},
            r"f: until must be a share of training in \(0, 1\], not 2",
        ),
        ({"figures": [{"name": "f", "kind": "sweep", "x": "a", "y": "gain"}]}, "y must be one of best, steps, seconds"),
        ({"figures": []}, r"figures must be a list, not \[\]"),
        ({"figures": [{"name": "f", "kind": "pie"}]}, "kind 'pie' is unknown; choose from curves"),
        ({"figures": [{"name": "f", "kind": "sweep"}]}, "f: sweep needs x"),
        ({"figures": [{"name": "f", "kind": "horizon", "y": "loss"}]}, "y must be one of best, steps, seconds"),
        ({"figures": [{"name": "f", "kind": "curves", "x": 1}]}, "curves takes no x"),
        ({"figures": GOOD["figures"] * 2}, "two have the same name"),
    ],
)
def test_a_bad_comparison_is_one_line(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message) as error:
        _load(tmp_path, **changes)
    assert "\n" not in str(error.value)


def test_no_comparison_and_no_yaml(tmp_path):
    with pytest.raises(UsageError, match=r"--comparison=.*none\.yaml: No such file"):
        load(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1\nb: 2")
    with pytest.raises(UsageError, match=r"bad\.yaml is not YAML"):
        load(tmp_path / "bad.yaml")


def test_a_missing_search_space_is_named(tmp_path):
    comparison = _load(tmp_path, search_spaces="nowhere")
    with pytest.raises(UsageError, match=r"cannot read the search space nowhere/lawa\.json"):
        comparison.search_space("lawa")
