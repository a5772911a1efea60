"""Calibration: the tuned rate, the target at its place, and the checks of a well-posed baseline."""

import pandas as pd
import pytest

from miniperf import calibration, workloads

NAME = "mini_imagenet_vit"
STEPS = workloads.make(NAME).step_hint
RATES = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05]


def calibrated(tables, before: int | None = 3) -> tuple[list[str], list[str]]:
    """Of the miniature's search space, three seeds."""
    return calibration.calibrate(NAME, workloads.make(NAME), RATES, before, 3, tables, lambda run: 123.4)


def table(final: float, by: float = 1.0) -> pd.DataFrame:
    """A run whose accuracy rises evenly from 0 and has its final value after the share `by` of training."""
    steps = [round(STEPS * i / 50) for i in range(51)]
    values = [min(1.0, i / 50 / by) * final for i in range(51)]
    return pd.DataFrame({"global_step": steps, "validation/accuracy": values, "test/accuracy": values})


def runs(finals: dict[int, float], seeds: list[float], constant: list[float]):
    """By trial at seed 0, by seed at the tuned one."""

    def tables(asked):
        if {run.seed for run in asked} == {0}:
            return [table(finals[run.trial]) for run in asked]
        return [
            table({calibration.BASELINE: seeds, calibration.CONSTANT: constant}[run.submission][run.seed])
            for run in asked
        ]

    return tables


def test_a_well_posed_baseline_passes_and_gets_the_median_at_its_place_for_a_target():
    finals = {1: 0.5, 2: 0.7, 3: 0.9, 4: 0.8, 5: 0.6, 6: 0.1}
    lines, row = calibrated(runs(finals, [0.90, 0.89, 0.91], [0.7, 0.71, 0.69]))
    share = workloads.make(NAME).target_share
    target = max(i / 50 for i in range(51) if round(STEPS * i / 50) <= round(share * STEPS)) * 0.90
    assert any(f"Targets: validation **{target:.5f}**" in line for line in lines)
    assert any("trial 3, learning rate 0.005" in line for line in lines)
    assert not any("no" in cell.split("**") for cell in row)
    assert row[3] == "3/3"
    assert row[-1] == "123"
    assert float(row[5]) == pytest.approx(share, abs=0.03)


def test_what_is_ill_posed_is_said():
    at_the_edge = {1: 0.9, 2: 0.7, 3: 0.6, 4: 0.5, 5: 0.4, 6: 0.3}
    lines, row = calibrated(runs(at_the_edge, [0.90, 0.40, 0.95], [0.92, 0.93, 0.91]))
    assert row[1] == "**no**: 0.001"
    assert row[2].startswith("**no**: -")
    assert row[3] == "**no**: 2/3"
    assert any("missed" in line for line in lines)


@pytest.mark.parametrize("before", [1, 4, 6, None])
def test_rates_are_tried_until_the_best_has_a_worse_one_on_both_sides(before):
    """From wherever the last calibration left it; without any, from the middle."""
    finals = {1: 0.5, 2: 0.7, 3: 0.9, 4: 0.8, 5: 0.6, 6: 0.1}
    lines, row = calibrated(runs(finals, [0.90, 0.89, 0.91], [0.7, 0.71, 0.69]), before)
    tried = [line.split(" | ")[0] for line in lines if line.startswith("| 0.")]
    assert {"| 0.002", "| 0.005", "| 0.01"} <= set(tried)
    assert len(tried) == {1: 4, 4: 4, 6: 5, None: 3}[before]
    assert row[1] == "0.005"


@pytest.mark.parametrize("diverged", [(3,), (2, 3, 4), (3, 4, 5, 6)])
@pytest.mark.parametrize("final", [float("nan"), float("inf")])
def test_a_rate_that_diverges_is_not_the_tuned_one(diverged, final):
    finals = {1: 0.5, 2: 0.7, 3: 0.9, 4: 0.8, 5: 0.6, 6: 0.1} | dict.fromkeys(diverged, final)
    best = {(3,): 4, (2, 3, 4): 1, (3, 4, 5, 6): 2}[diverged]
    assert calibrated(runs(finals, [0.9, 0.89, 0.91], [0.7, 0.71, 0.69]))[1][1].endswith(f"{RATES[best - 1]:g}")


def test_a_seed_that_diverges_is_not_left_out():
    finals = {1: 0.5, 2: 0.7, 3: 0.9, 4: 0.8, 5: 0.6, 6: 0.1}
    row = calibrated(runs(finals, [0.9, float("nan"), 0.91], [0.7, 0.71, 0.69]))[1]
    assert row[2].startswith("**no**: nan")


def test_of_two_equal_rates_the_tuned_one_stays():
    finals = {1: 0.5, 2: 0.9, 3: 0.9, 4: 0.9, 5: 0.6, 6: 0.1}
    assert calibrated(runs(finals, [0.9, 0.9, 0.9], [0.7, 0.7, 0.7]))[1][1] == "0.005"


def test_a_spread_of_a_tenth_is_too_much():
    finals = {1: 0.5, 2: 0.7, 3: 0.9, 4: 0.8, 5: 0.6, 6: 0.1}
    row = calibrated(runs(finals, [0.9, 0.8, 1.2], [0.1, 0.1, 0.1]))[1]
    assert row[4].startswith("**no**: ")
