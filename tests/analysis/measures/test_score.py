"""Performance profiles and scores, and the command that prints them."""

import numpy as np
import pandas as pd
import pytest

from analysis.measures import score
from tests.support import synthetic_logs
from tests.support.commands import run
from tests.support.synthetic_logs import plain


def table(rows, columns):
    return pd.DataFrame(rows, columns=columns, dtype=float)


def test_the_score_is_the_area_under_the_profile():
    # On `b` two is twice as slow: its profile is 1/2 up to tau = 2, then 1.
    times = table([[10, 10], [10, 20]], ["a", "b"])
    times.index = ["one", "two"]
    profile = score.performance_profile(score.scored_times(times, plain(["a", "b"])), 2)
    scores = score.scores(profile)
    assert scores["one"] == pytest.approx(1.0)
    assert scores["two"] == pytest.approx((0.5 * 1 + 1 * 2) / 3, abs=0.01)  # 100 points: a step is off by half of 3/99


def test_more_than_four_times_the_best_is_a_miss():
    scored = score.scored_times(table([[10.0], [40.0], [40.1]], ["a"]), plain(["a"]))
    assert scored["a"].tolist() == [10, 40, np.inf]


@pytest.mark.parametrize(("base", "variant"), [(np.inf, 5.0), (10.0, np.inf), (10.0, np.nan), (10.0, 50.0)])
def test_a_base_workload_counts_only_with_its_variant(base, variant):
    times = table([[10, 5], [base, variant]], ["a", "a_variant"])
    scored = score.scored_times(times, plain(["a", "a_variant"], {"a_variant": "a"}))
    assert scored.columns.tolist() == ["a"]
    assert scored["a"].tolist() == [10, np.inf]


def test_workloads_without_any_run_count_against_the_score():
    times = score.scored_times(table([[10.0]], ["a"]), plain(["a"]))
    assert score.scores(score.performance_profile(times, 8)).tolist() == pytest.approx([1 / 8])


def test_the_command_writes_tables_and_the_profile(tmp_path):
    for study in range(2):
        synthetic_logs.write(tmp_path / "runs", "nadamw", [0.1, 0.2, 0.6], study=study)
        synthetic_logs.write(tmp_path / "runs", "lawa", [0.1, 0.6, 0.6], study=study)
    done = run("score", f"--logs={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert "1    | lawa       | 1.0000" in done.stdout
    assert (tmp_path / "out/scores.md").read_text().strip() == done.stdout.strip()
    written = pd.read_csv(tmp_path / "out/speedups.csv")
    assert written[["workload", "ratio"]].to_numpy().tolist() == [
        ["toy", pytest.approx(18 / 27.5)],  # .5 between .1 and .6, and between .2 and .6
        ["all", pytest.approx(18 / 27.5)],
    ]
    assert (tmp_path / "out/performance_profiles.png").stat().st_size > 10_000
    assert (tmp_path / "out/performance_profiles.pdf").exists()


def test_the_command_says_what_is_wrong_in_one_line(tmp_path):
    done = run("score", f"--logs={tmp_path}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
