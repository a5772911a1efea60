"""Time to target, scores and speed-ups, on made-up logs and on the published ones."""

import subprocess
import time

import numpy as np
import pandas as pd
import pytest

from analysis.measures import gpu_hours, score, speedup, to_target
from analysis.reading import logs
from analysis.targets import resolve
from tests.support import ROOT, synthetic_logs
from tests.support import published as published_logs
from tests.support.warm_python import python


@pytest.fixture(scope="module")
def published():
    path = published_logs.need(published_logs.V05)
    start = time.process_time()
    read = logs.read(path)
    measured = resolve.resolve(read)
    trials = to_target.trials(read, measured)
    scores, _ = score.score(to_target.studies(trials), measured)
    return read, measured, trials, scores, time.process_time() - start


def test_the_published_scores_come_out(published):
    assert published[3].round(4).to_dict() == published_logs.SCORES_V05


def test_the_published_logs_are_read_in_seconds(published):
    read, *_, seconds = published
    # All 3,718 files: 18 of them lie outside a workload's folder.
    assert len(read.runs) + read.skipped["reason"].str.startswith("not in a folder").sum() == 3718
    assert seconds < 10  # about 3 s on an idle machine


def test_the_published_medians(published):
    _, _, trials, *_ = published
    times = to_target.submissions(to_target.studies(trials)).round()
    base = ["criteo1tb", "fastmri", "imagenet_vit", "ogbg", "wmt", "librispeech_conformer", "librispeech_deepspeech"]
    expected = [7208, 2030, 70197, 7697, 41189, 54769, 36024]
    assert times.loc["baseline", base].tolist() == expected
    assert np.isinf(times.loc["baseline", "imagenet_resnet"])
    assert times.loc["lawa_queue", base[:5]].tolist() == [np.inf, 1971, 51189, 4617, 27171]
    assert times.loc["lawa_ema", base[:5]].tolist() == [5303, 2556, 61886, 10597, 43034]


def test_the_committed_analysis_is_what_its_command_makes(published, tmp_path):
    command = [
        python(),
        "-m",
        "scripts.published.algoperf_v05",
        f"--logs={published_logs.V05}",
        f"--out={tmp_path}",
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    committed = ROOT / "docs/results/published_v05"
    assert (tmp_path / "tables.md").read_text() == (committed / "tables.md").read_text()
    assert {path.name for path in tmp_path.glob("*.png")} == {path.name for path in committed.glob("*.png")}


def test_two_rules_for_the_best_trial(tmp_path):
    # Trial 1 reaches the target at its third evaluation, trial 2, evaluated more often, at its fourth but sooner.
    synthetic_logs.write(tmp_path, "one", [0.1, 0.2, 0.6], trial=1, seconds_per_step=1.0)
    synthetic_logs.write(tmp_path, "one", [0.1, 0.2, 0.3, 0.6], trial=2, seconds_per_step=0.5, step_hint=30)
    _align_hints(tmp_path)
    read = logs.read(tmp_path)
    trials = to_target.trials(read, resolve.resolve(read))
    assert to_target.studies(trials)["seconds"].tolist() == [30.0]
    assert to_target.studies(trials, "fastest")["seconds"].tolist() == [20.0]
    differ = to_target.difference(trials)
    assert differ["excess"].tolist() == [0.5]
    assert differ.attrs["compared"] == 1


def _align_hints(root):
    for path in root.rglob("meta_data_0.json"):
        path.write_text(path.read_text().replace('"step_hint": 40', '"step_hint": 30'))


def test_median_over_studies_counts_misses_as_infinite(tmp_path):
    for study, values in enumerate(([0.6, 0.6], [0.1, 0.6], [0.1, 0.2])):
        synthetic_logs.write(tmp_path, "one", values, study=study)
        synthetic_logs.write(tmp_path, "two", values if study == 0 else [0.1, 0.2], study=study)
    read = logs.read(tmp_path)
    best = to_target.studies(to_target.trials(read, resolve.resolve(read)))
    assert to_target.submissions(best, "steps")["toy"].tolist() == [20, np.inf]


def table(rows, columns):
    return pd.DataFrame(rows, columns=columns, dtype=float)


def plain(columns, variant_of=None):
    result = pd.DataFrame({"variant_of": None, "scored": True, "budget_s": np.nan, "step_hint": 100}, index=columns)
    for variant, base in (variant_of or {}).items():
        result.loc[variant, "variant_of"] = base
    return result


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


def studies(**seconds):
    """Studies of a toy workload; None is a miss after 100 s."""
    rows = [
        {"submission": name, "workload": "toy", "study": k, "meta": {}, "seconds": np.inf if x is None else x,
         "reached": x is not None, "last_seconds": 100.0}
        for name, values in seconds.items() for k, x in enumerate(values)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def compare(best, budget=np.nan):
    """Ours over the base's."""
    measured = plain(sorted(best["workload"].unique())).assign(budget_s=budget)
    return speedup.compare(best, measured, ["ours"], "base")["ours"]


def test_speedup_is_paired():
    # Ratios 0.5 in each pair, though the studies differ tenfold: unpaired, the interval would be wide.
    result = compare(studies(base=[10.0, 100.0, 30.0], ours=[5.0, 50.0, 15.0]))
    assert result.ratio == pytest.approx(0.5)
    assert result.over_studies == pytest.approx((0.5, 0.5))
    assert result.workloads.loc["toy", "pairs"] == 3


def test_pairs_go_by_seed_where_the_logs_say_it():
    best = studies(base=[10.0, 100.0], ours=[50.0, 5.0])
    best["meta"] = [{"rng_seed": seed} for seed in (0, 1, 1, 0)]
    assert compare(best).over_studies == pytest.approx((0.5, 0.5))


def test_studies_with_nothing_in_common_are_compared_unpaired():
    best = studies(base=[10.0, 12.0], ours=[5.0, 6.0])
    best.loc[best["submission"] == "ours", "study"] += 7
    result = compare(best)
    assert result.ratio == pytest.approx(0.5)
    assert result.workloads.loc["toy", "pairs"] == 0
    assert result.over_studies[0] < 0.5 < result.over_studies[1]


@pytest.mark.parametrize(
    ("base", "ours", "ratio", "bound"),
    [
        ([50.0, 50.0], [25.0, None], np.sqrt(0.5 * 2.0), ">="),
        ([50.0, None], [25.0, 50.0], 0.5, "<="),
        ([None, 50.0], [None, 25.0], np.sqrt(0.5), "?"),
    ],
)
def test_a_miss_counts_with_the_horizon_and_bounds_the_ratio(base, ours, ratio, bound):
    result = compare(studies(base=base, ours=ours))
    assert result.ratio == pytest.approx(ratio)
    assert result.bound == result.workloads.loc["toy", "bound"] == bound


def test_a_run_that_diverged_early_gains_nothing():
    best = studies(base=[50.0, 50.0], ours=[None, None])
    best.loc[best["submission"] == "ours", "last_seconds"] = 1.0
    assert compare(best).ratio >= 1.0


def test_the_bootstrap_interval_covers():
    # Of 200 experiments with 10 pairs each, about 95 % hold the true ratio (a little fewer with so few pairs).
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        base = np.exp(generator.normal(3, 0.5, 10))
        ours = base * 0.8 * np.exp(generator.normal(0, 0.2, 10))
        best = studies(base=base, ours=ours).assign(last_seconds=1e9)
        low, high = compare(best).over_studies
        hits += low <= 0.8 <= high
    assert 0.85 <= hits / 200 <= 0.99


def test_a_miss_counts_with_the_budget_not_with_the_furthest_run():
    best = studies(base=[50.0, 50.0], ours=[None, None])
    best.loc[best["submission"] == "ours", "last_seconds"] = 1.0
    assert compare(best, budget=300.0).ratio == pytest.approx(6.0)


def test_the_furthest_run_may_be_of_a_third_submission():
    best = studies(base=[50.0, 50.0], ours=[None, None], third=[None, None])
    best.loc[best["submission"] == "third", "last_seconds"] = 400.0
    assert compare(best).ratio == pytest.approx(8.0)


def test_a_workload_that_was_never_run_is_missed():
    best = pd.concat([studies(base=[50.0], ours=[50.0]), studies(base=[50.0]).assign(workload="other")])
    result = compare(best, budget=200.0)
    assert result.workloads.loc["other", ["ratio", "misses", "bound"]].tolist() == [pytest.approx(4.0), 1, ">="]
    assert result.ratio == pytest.approx(2.0)
    assert np.isnan(result.official)  # the official code has no number for it


def test_the_official_figure_is_of_medians():
    best = studies(base=[10.0, 20.0, 60.0], ours=[None, 40.0, None])
    # Medians 20 and a miss: the budget and a second. Ours is over pairs.
    result = compare(best, budget=99.0)
    assert result.official == pytest.approx(100 / 20)
    assert result.ratio == pytest.approx((99 / 10 * 40 / 20 * 99 / 60) ** (1 / 3))


def test_variants_have_no_part_in_the_ratio():
    best = pd.concat(
        [studies(base=[50.0], ours=[50.0]), studies(base=[50.0], ours=[5.0]).assign(workload="toy_variant")]
    )
    measured = plain(["toy", "toy_variant"], {"toy_variant": "toy"})
    assert speedup.compare(best, measured, ["ours"], "base")["ours"].ratio == 1.0


def test_gpu_hours_count_a_miss_and_a_workload_without_a_run_with_the_budget():
    best = pd.concat([studies(base=[3600.0, None], ours=[3600.0]), studies(base=[3600.0]).assign(workload="other")])
    table = gpu_hours.gpu_hours(best, plain(["toy", "other"]).assign(budget_s=7200.0), gpus=4)
    assert table.loc["base", ["hours", "misses", "missing"]].tolist() == [4 * (1.5 + 1), 1, 0]
    assert table.loc["ours", ["hours", "misses", "missing"]].tolist() == [4 * (1 + 2), 1, 1]
    assert gpu_hours.shown(table) == {"base": ">= 10", "ours": ">= 12"}


def test_nothing_in_common_is_no_ratio():
    best = studies(base=[1.0], ours=[1.0])
    best.loc[best["submission"] == "ours", "workload"] = "other"
    assert speedup.compare(best, plain(["toy", "other"]), ["ours"], "base") == {}


def test_the_command_writes_tables_and_the_profile(tmp_path):
    for study in range(2):
        synthetic_logs.write(tmp_path / "runs", "nadamw", [0.1, 0.2, 0.6], study=study)
        synthetic_logs.write(tmp_path / "runs", "lawa", [0.1, 0.6, 0.6], study=study)
    done = _score(f"--logs={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert "1    | lawa       | 1.0000" in done.stdout
    assert (tmp_path / "out/scores.md").read_text().strip() == done.stdout.strip()
    written = pd.read_csv(tmp_path / "out/speedups.csv")
    assert written[["workload", "ratio"]].to_numpy().tolist() == [
        ["toy", pytest.approx(2 / 3)],
        ["all", pytest.approx(2 / 3)],
    ]
    assert (tmp_path / "out/performance_profiles.png").stat().st_size > 10_000
    assert (tmp_path / "out/performance_profiles.pdf").exists()


def test_the_command_says_what_is_wrong_in_one_line(tmp_path):
    done = _score(f"--logs={tmp_path}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def _score(*flags):
    command = [python(), "-m", "scripts.score", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
