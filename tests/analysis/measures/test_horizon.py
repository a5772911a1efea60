"""What is measured against the horizon: its optimum, the gain, the lead on the baseline along the way."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from analysis.comparisons import draw
from analysis.comparisons.comparison import load
from analysis.figures import horizon as horizon_figures
from analysis.measures import horizon, to_target
from analysis.measures.to_target import Measured
from analysis.reading import logs
from analysis.targets import resolve
from tests.support import ROOT, synthetic_logs


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_horizon_of_a_run():
    assert horizon.horizon_of({"averaging_horizon": 0.1, "averaging_window": 20}, 1000) == 0.1
    assert horizon.horizon_of({"averaging_interval": 10, "averaging_window": 20}, 1000) == 0.2
    assert horizon.horizon_of({"averaging_interval": 10, "averaging_decay": 19 / 21}, 1000) == pytest.approx(0.2)
    assert np.isnan(horizon.horizon_of({"learning_rate": 0.1}, 1000))


def test_the_parabola_finds_the_best_horizon(tmp_path):
    comparison = load(ROOT / "comparisons/lawa_horizon.yaml")
    short = {**comparison.grid["lawa"], "averaging_interval": [1, 2, 4]}  # the toy has 400 updates
    comparison = dataclasses.replace(comparison, grid={"lawa": short})
    synthetic_logs.write_comparison(tmp_path, comparison, workloads=("toy",))
    selected = draw.select(logs.read(tmp_path), comparison)
    measured = resolve.resolve(selected)
    rows = to_target.interpolated(horizon.measure(Measured(selected, measured), 1.0))
    figure = horizon_figures.against_horizon(rows, "nadamw", measured, "steps", "part", "share")
    axis = figure.axes[0]
    workload, shown = axis.get_title().split(", best ")
    assert workload == "toy"
    assert 3 <= float(shown.removesuffix(" %")) <= 8  # made to be best at 5 %
    labels = {line.get_label() for line in axis.lines}
    assert {"nadamw", "lawa, window=5", "lawa, window=20", "parabola, all runs", "its optimum"} <= labels


@pytest.mark.parametrize(("y", "lower"), [("steps", True), ("gain", False), ("best", True)])
def test_a_heat_map_has_a_colour_bar_with_unit_and_direction_and_its_best_cell_is_brightest(y, lower):
    cells = [(interval, window) for interval in (1, 2, 4) for window in (5, 20)]
    rows = pd.DataFrame(
        {
            "workload": "toy",
            "hparams": [{"averaging_interval": interval, "averaging_window": window} for interval, window in cells],
            "steps": [700.0, 500.0, 600.0, np.inf, 900.0, 800.0],
            "gain": [-0.5, 0.1, 0.05, 0.02, -0.1, 0.08],
            "best": [0.7, 0.5, 0.6, 0.65, 0.9, 0.8],
        }
    )
    targets = pd.DataFrame([{"metric": "loss", "lower": True, "target": 0.6}], index=["toy"])
    axis, bar = horizon_figures.heatmap(rows, targets, y).axes
    assert bar.get_ylabel().endswith("(lower is better)" if lower else "(higher is better)")
    assert bar.yaxis_inverted() == lower  # the best on top
    image = axis.images[0]
    values = image.get_array()
    brightness = image.to_rgba(values)[..., :3].sum(-1)
    best = np.ma.argmin(values) if lower else np.ma.argmax(values)
    assert brightness.flat[best] == brightness[~np.ma.getmaskarray(values)].max()
    texts = [text.get_text() for text in axis.texts]
    assert ("1 missed" in texts) == (y == "steps")
    alone = horizon_figures.heatmap(rows.assign(steps=np.inf), targets, "steps")
    assert len(alone.axes) == 1  # nothing to tell apart
    assert {text.get_text() for text in alone.axes[0].texts} == {"1 missed"}


def test_no_optimum_without_runs_behind_it():
    horizons = (0.01, 0.02, 0.04, 0.08, 0.16)
    rows = pd.DataFrame(
        [
            {"study": seed, "horizon": h, "steps": 100 + 10 * np.log(h / 0.04) ** 2 + seed}
            for seed in range(3)
            for h in horizons
        ]
    )
    found = horizon.optimum(rows, "horizon", "steps", lower=True)
    assert (found.best, found.low, found.high) == pytest.approx((0.04, 0.04, 0.04))  # the seeds agree
    alone = horizon.optimum(rows[rows["study"] == 0], "horizon", "steps", lower=True)
    assert alone.best == pytest.approx(0.04)
    assert np.isnan(alone.low)
    assert np.isnan(alone.high)
    # A seed that missed at one horizon takes that horizon out; one that always missed takes all.
    missed = rows.assign(steps=rows["steps"].where((rows["study"] != 1) | (rows["horizon"] != 0.01), np.inf))
    assert horizon.optimum(missed, "horizon", "steps", lower=True).ends == (0.02, 0.16)
    missed = rows.assign(steps=rows["steps"].where(rows["study"] != 1, np.inf))
    assert horizon.optimum(missed, "horizon", "steps", lower=True) is None
    # So does one that diverged; one of which nothing is known does not.
    diverged = rows.assign(steps=rows["steps"].where((rows["study"] != 1) | (rows["horizon"] != 0.01), np.nan))
    assert horizon.optimum(diverged, "horizon", "steps", lower=True).ends == (0.02, 0.16)
    unknown = rows.assign(steps=rows["steps"].where(rows["study"] != 1, np.nan))
    assert horizon.optimum(unknown, "horizon", "steps", lower=True).ends == (0.01, 0.16)


def points_on_a_parabola(best, noise, seeds=3, level=0.0):
    random = np.random.default_rng(1)
    rows = [
        {"x": x, "horizon": x, "study": seed, "y": 100 + level * seed + np.log(x / best) ** 2 + noise * random.normal()}
        for seed in range(seeds)
        for x in np.geomspace(0.005, 0.32, 7)
    ]
    return pd.DataFrame(rows)


def test_the_optimum_is_found_whatever_the_seeds_levels():
    found = horizon.optimum(points_on_a_parabola(0.03, 0.01, level=50.0), "x", "y", lower=True)
    assert found.best == pytest.approx(0.03, rel=0.02)
    assert found.low <= found.best <= found.high < 1.02 * found.low
    rough = horizon.optimum(points_on_a_parabola(0.03, 1.0), "x", "y", lower=True)
    assert rough.high > 1.2 * rough.low  # noise widens the interval
    apart = [points_on_a_parabola(best, 0.01).assign(study=seed) for seed, best in enumerate((0.02, 0.03, 0.045))]
    found = horizon.optimum(pd.concat(apart, ignore_index=True), "x", "y", lower=True)
    assert found.best == pytest.approx(0.03, rel=0.02)
    assert found.high > 5 * found.low  # t of 2 degrees of freedom on logs .4 apart


def test_the_optimum_outside_of_the_range_is_its_end():
    found = horizon.optimum(points_on_a_parabola(2.0, 0.01), "x", "y", lower=True)
    assert found.ends == pytest.approx((0.005, 0.16))  # .32 is longer than what is fitted
    assert found.best == found.high == pytest.approx(0.16)
    found = horizon.optimum(points_on_a_parabola(0.03, 0.01).assign(y=lambda rows: -rows["y"]), "x", "y", lower=True)
    assert found.best in found.ends  # the parabola opens the wrong way
    assert horizon.optimum(points_on_a_parabola(0.03, 0.1).query("x < .02"), "x", "y", lower=True) is None


def test_gain_is_over_the_run_of_the_same_seed_and_hyperparameters(tmp_path):
    """Two lengths of schedule, of which the first half counts."""
    for seed in (0, 1):
        for fraction in (0.5, 1.0):
            raw = np.linspace(0.1, 0.5, 40) + 0.1 * seed + 0.05 * fraction
            raw = raw[: int(40 * fraction)]
            trial = int(2 * fraction)
            common = {"study": seed, "trial": trial, "workload": "toy"}
            hparams = {"learning_rate": 1.0, "schedule_fraction": fraction}
            synthetic_logs.write(tmp_path, "nadamw", raw, hparams=hparams, **common)
            better = np.where(np.arange(len(raw)) < len(raw) / 2, raw + 0.01 * trial, raw - 1)
            averaging = {"averaging_interval": 2, "averaging_window": 5}
            folder = synthetic_logs.write(tmp_path, "lawa", better, hparams={**hparams, **averaging}, **common)
            for path in (folder, tmp_path / "nadamw" / folder.relative_to(tmp_path / "lawa")):
                meta = json.loads((path / "meta_data_0.json").read_text())
                meta["workload"]["step_hint"] = 400
                (path / "meta_data_0.json").write_text(json.dumps(meta))
    read = logs.read(tmp_path)
    rows = horizon.measure(Measured(read, resolve.resolve(read)), 0.5)
    lawa = rows[rows["submission"] == "lawa"].set_index(["study", "trial"])
    assert dict(lawa["gain"]) == pytest.approx({(0, 1): 0.01, (1, 1): 0.01, (0, 2): 0.02, (1, 2): 0.02})
    assert dict(lawa["horizon"].xs(0)) == pytest.approx({1: 0.05, 2: 0.025})
    assert (rows.loc[rows["submission"] == "nadamw", "gain"] == 0).all()


def test_leads_over_workloads_by_horizon(tmp_path):
    for workload, faster in (("toy", 2.0), ("toy_two", 1.25)):
        for submission, speed in (("nadamw", 1.0), ("lawa", faster)):
            averaging = {"averaging_interval": 1, "averaging_window": 4} if submission == "lawa" else {}
            values = np.minimum(0.8, 0.02 * speed * np.arange(1, 41))
            synthetic_logs.write(tmp_path, submission, values, workload=workload, hparams={"lr": 1.0, **averaging})
    read = logs.read(tmp_path)
    table = horizon.leads(Measured(read, resolve.resolve(read)), "nadamw", (0.5,))
    assert list(table.ratio.index) == [0.01]
    assert table.ratio[0.5].item() == pytest.approx(np.sqrt(1 / 2.0 * 1 / 1.25))
    assert table.low[0.5].item() < table.ratio[0.5].item() < table.high[0.5].item()
