"""Speed-ups with their intervals and bounds, and GPU-hours: what a miss counts with."""

import numpy as np
import pandas as pd
import pytest

from analysis.measures import gpu_hours, speedup, to_target
from tests.support.synthetic_logs import plain


def studies(**seconds):
    """Studies of a toy workload; None is a miss after 100 s."""
    rows = [
        {"submission": name, "workload": "toy", "study": k, "meta": {}, "seconds": np.inf if x is None else x,
         "reached": x is not None, "last_seconds": 100.0}
        for name, values in seconds.items() for k, x in enumerate(values)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def compare(best, budget=np.nan, targets=None):
    """Ours over the base's."""
    if targets is None:
        targets = plain(sorted(best["workload"].unique())).assign(budget_s=budget)
    return speedup.compare(best, to_target.submissions(best), targets, ["ours"], "base").get("ours")


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


@pytest.mark.parametrize("lacking", ["base", "ours"])
def test_if_one_run_does_not_say_its_seed_both_sides_go_by_study(lacking):
    """The seeds of one side are not taken for numbers of studies of the other."""
    best = studies(base=[10.0, 100.0, 30.0], ours=[5.0, 50.0, 15.0])
    best["meta"] = [{"rng_seed": seed} for seed in (1, 2, 3, 1, 2, 3)]
    best.at[int(best.index[best["submission"] == lacking][0]), "meta"] = {}
    result = compare(best)
    assert result.workloads.loc["toy", "pairs"] == 3
    assert result.over_studies == pytest.approx((0.5, 0.5))


def test_a_seed_that_is_no_number_is_none():
    best = studies(base=[10.0, 100.0], ours=[5.0, 50.0])
    best["meta"] = [{"rng_seed": [0, 1]}] * 4
    assert compare(best).workloads.loc["toy", "pairs"] == 2


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


def test_the_interval_covers():
    # Of 200 experiments with 3 pairs each, about 95 % hold the true ratio.
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        base = np.exp(generator.normal(3, 0.5, 3))
        ours = base * 0.8 * np.exp(generator.normal(0, 0.2, 3))
        best = studies(base=base, ours=ours).assign(last_seconds=1e9)
        low, high = compare(best).over_studies
        hits += low <= 0.8 <= high
    assert 0.91 <= hits / 200 <= 0.99


def test_an_interval_over_workloads_is_of_a_number_each():
    # Within a workload the pairs agree; .5 and .8 on two workloads say little of a third.
    best = pd.concat(
        [
            studies(base=[10.0, 20.0], ours=[5.0, 10.1]),
            studies(base=[10.0, 20.0], ours=[8.0, 16.1]).assign(workload="w"),
        ]
    )
    result = compare(best)
    assert result.over_studies == pytest.approx((0.63, 0.63), abs=0.04)
    low, high = result.over_workloads
    assert low < 0.05
    assert high > 5


@pytest.mark.parametrize(
    ("bound", "text"), [("", "0.80 to 0.95"), (">=", ">= 0.80"), ("<=", "<= 0.95"), ("?", "? 0.80 to 0.95")]
)
def test_the_end_that_misses_leave_open_is_not_shown(bound, text):
    assert speedup.interval(0.8, 0.95, bound) == text


def test_the_rows_say_what_follows():
    best = pd.concat(
        [studies(base=[10.0, 20.0, 30.0], ours=[5.0, 10.1, 15.2]), studies(base=[9.0, 8.0, 8.5], ours=[9.1, 8.0, 8.4])
         .assign(workload="w")]
    )  # fmt: skip
    table = speedup.rows({"ours": compare(best)}).set_index("workload")
    assert table["verdict"].to_dict() == {"toy": "sooner", "w": "equal within 5%", "all": "sooner"}
    assert table.loc["all", "verdict_over_workloads"] == "open"


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
    assert compare(best, targets=plain(["toy", "toy_variant"], {"toy_variant": "toy"})).ratio == 1.0


def test_gpu_hours_count_a_miss_and_a_workload_without_a_run_with_the_budget():
    best = pd.concat([studies(base=[3600.0, None], ours=[3600.0]), studies(base=[3600.0]).assign(workload="other")])
    table = gpu_hours.gpu_hours(best, plain(["toy", "other"]).assign(budget_s=7200.0), gpus=4)
    assert table.loc["base", ["hours", "misses", "missing"]].tolist() == [4 * (1.5 + 1), 1, 0]
    assert table.loc["ours", ["hours", "misses", "missing"]].tolist() == [4 * (1 + 2), 1, 1]
    assert gpu_hours.shown(table) == {"base": ">= 10", "ours": ">= 12"}
    assert gpu_hours.heading(table, 4) == "GPU-hours (4 GPUs)"


def test_short_runs_without_gpus_are_shown_in_seconds():
    table = gpu_hours.gpu_hours(studies(base=[16.0], ours=[17.0]), plain(["toy"]).assign(budget_s=60.0), gpus=1)
    assert gpu_hours.shown(table) == {"base": "16", "ours": "17"}
    assert gpu_hours.heading(table, 1) == "seconds to all targets"
    assert gpu_hours.heading(table.assign(hours=2.0), 1) == "hours to all targets"


def test_nothing_in_common_is_no_ratio():
    best = studies(base=[1.0], ours=[1.0])
    best.loc[best["submission"] == "ours", "workload"] = "other"
    assert compare(best) is None
