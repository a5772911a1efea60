"""Hypothetical entries: what they scale, and that they are marked wherever they are shown."""

import subprocess

import numpy as np
import pandas as pd
import pytest

from analysis.errors import UsageError
from analysis.measures import results, what_if
from analysis.reading import logs
from tests.support import ROOT, published, synthetic_logs
from tests.support.warm_python import python

HIT = [0.1, 0.2, 0.6]  # after 30 updates and 3 s


@pytest.fixture
def runs(tmp_path):
    for study in range(3):
        for workload in ("toy", "toy_two"):
            synthetic_logs.write(tmp_path / "runs", "nadamw", HIT, study=study, workload=workload)
            values = [0.1, 0.2, 0.3] if workload == "toy_two" else HIT
            synthetic_logs.write(tmp_path / "runs", "other", values, study=study, workload=workload)
    return tmp_path / "runs"


def medians(runs, text):
    entry = what_if.parse(text)
    found = results.of(logs.read(runs), unit="seconds", imagined=[entry])
    return found.times.loc[entry.name].to_dict()


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ("0.5", {"toy": 1.5, "toy_two": 1.5}),
        ("toy=0.5", {"toy": 1.5, "toy_two": 3.0}),
        ("toy=0.5+toy_two=2", {"toy": 1.5, "toy_two": 6.0}),
        ("mini_toy=0.5", {"toy": 1.5, "toy_two": 3.0}),
    ],
)
def test_times_to_target_are_scaled(runs, ratios, expected):
    assert medians(runs, f"nadamw:steps*{ratios}") == pytest.approx(expected)


def test_a_miss_stays_a_miss(runs):
    assert medians(runs, "other:steps*0.5") == {"toy": 1.5, "toy_two": np.inf}


def test_ratios_may_come_from_the_table_of_another_run(runs, tmp_path):
    table = pd.DataFrame(
        {
            "submission": ["lawa"] * 3 + ["ema"],
            "workload": ["toy", "toy_two", "all", "toy"],
            "ratio": [0.5, 0.2, 9, 0.1],
        }
    )
    path = tmp_path / "speedups.csv"
    table.to_csv(path)
    assert medians(runs, f"nadamw:steps*{path}#lawa") == pytest.approx({"toy": 1.5, "toy_two": 0.6})
    with pytest.raises(UsageError, match=r"name one submission of .*speedups.csv after a #: ema, lawa"):
        what_if.parse(f"nadamw:steps*{path}")
    table.iloc[:3].drop(columns="submission").to_csv(path)
    assert medians(runs, f"nadamw:steps*{path}") == pytest.approx({"toy": 1.5, "toy_two": 0.6})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nadamw*0.82", r"--what_if=nadamw\*0.82: expected NAME:steps\*RATIO, as in nadamw:steps\*0.82"),
        ("nadamw:seconds*0.82", "expected NAME:steps"),
        ("nadamw:steps*", "expected NAME:steps"),
        ("nadamw:steps*fast", "the ratio 'fast' must be a number above 0"),
        ("nadamw:steps*-1", "the ratio '-1' must be a number above 0"),
        ("nadamw:steps*nan", "the ratio 'nan' must be a number above 0"),
        ("nadamw:steps*toy=", "the ratio '' must be a number above 0"),
        ("nadamw:steps*gone.csv", "gone.csv cannot be read: "),
        ("adam:steps*0.82", "no run of 'adam'; there are nadamw, other"),
        ("nadamw:steps*wmt=0.7", "nadamw has no run of 'wmt'; it has toy, toy_two"),
    ],
)
def test_wrong_ones_are_one_line(runs, text, message):
    with pytest.raises(UsageError, match=message):
        medians(runs, text)


def test_a_table_without_ratios_is_one_line(runs, tmp_path):
    (tmp_path / "a.csv").write_text("workload,steps\ntoy,3\n")
    with pytest.raises(UsageError, match=r"a.csv has no column ratio"):
        medians(runs, f"nadamw:steps*{tmp_path / 'a.csv'}")


def test_it_is_marked_wherever_it_is_shown(runs, tmp_path):
    out = tmp_path / "out"
    command = [python(), "-m", "scripts.score", f"--logs={runs}", "--what_if=nadamw:steps*0.82", f"--out={out}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "score without the hypothetical" in done.stdout
    assert "- what if: nadamw, steps*0.82: hypothetical, the runs of nadamw with scaled times to target" in done.stdout
    shown = [line for line in done.stdout.splitlines() if "steps*0.82" in line]
    assert all("what if: nadamw" in line for line in shown)
    assert len(shown) == 4  # rank, times, ratio, note
    for name in ("scores", "speedups", "trials"):
        table = pd.read_csv(out / f"{name}.csv")
        assert (table["submission"].str.startswith("what if: ") == table["submission"].str.contains("0.82")).all()
        assert table["submission"].str.startswith("what if: ").any()
    for name in ("seconds_to_target", "steps_to_target"):
        assert "what if: nadamw, steps*0.82" in pd.read_csv(out / f"{name}.csv").columns


def test_real_scores_are_those_without_it(runs):
    read = logs.read(runs)
    found = results.of(read, imagined=[what_if.parse("nadamw:steps*0.5")])
    assert found.real_scores.to_dict() == results.of(read).scores.to_dict()
    assert found.scores["nadamw"] < found.real_scores["nadamw"]


def test_the_papers_ratio_on_the_current_leaderboard():
    read = logs.read(published.need(published.A100))
    entry = what_if.parse("nadamw_baselinev05:steps*0.82")
    scores = results.of(read, imagined=[entry]).scores
    assert round(scores[entry.name], 4) == 0.5006
    assert list(scores.index).index(entry.name) == 2
