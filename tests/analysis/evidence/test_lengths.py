"""Runs of several lengths side by side, on made runs whose answers are known."""

import shutil

from matplotlib.text import Text

from analysis.evidence import conclusions, figures, lengths
from analysis.evidence.summaries import MARGINS
from tests.analysis.evidence.test_evidence import STEPS, evidence, made
from tests.analysis.evidence.test_schedules import cells_of

LONG = 10 * STEPS


def test_lengths_are_compared_on_the_workloads_that_have_both(tmp_path):
    for seed in range(3):
        for workload, short, long in (("mini_ogbg", 0.9, 0.5), ("mini_wmt", 0.8, 0.4)):
            made(tmp_path / "runs", workload, seed, short)
            made(tmp_path / "runs", workload, seed, long, part="B", steps=LONG)
        made(tmp_path / "runs", "mini_fastmri", seed, 0.3)  # has one length alone
    several = lengths.of(evidence(tmp_path))
    assert {part: list(runs) for part, runs in several.items()} == {part: ["mini_ogbg", "mini_wmt"] for part in "AB"}
    found = {(line["workload"], line["length"], line["weights"]): line for line in cells_of(lengths.table(several))}
    assert found["mini_ogbg", "1 x", "growing, 15 %"]["to 80%"].startswith("0.90")
    assert found["mini_ogbg", "10 x", "growing, 15 %"]["to 80%"].startswith("0.50")
    assert found["mini_wmt", "10 x", "growing, 15 %"]["updates"] == str(LONG)
    assert found["mini_wmt", "10 x", "growing, 15 %"]["at the end"].endswith("within")
    both = found[lengths.OVER, "10 x", "growing, 15 %"]
    assert both["to 50%"].startswith("0.45 (")  # the geometric mean of .5 and .4
    assert len(lengths.by_place(several).axes) == 2


def test_a_workload_of_another_length_is_named(tmp_path):
    for seed in range(3):
        for workload, times in (("mini_criteo1tb", 2), ("mini_ogbg", 10), ("mini_fastmri", 10)):
            made(tmp_path / "runs", workload, seed, 0.9)
            made(tmp_path / "runs", workload, seed, 0.5, part="B", steps=times * STEPS)
    several = lengths.of(evidence(tmp_path))
    found = {(line["workload"], line["length"]) for line in cells_of(lengths.table(several))}
    assert {("mini_criteo1tb", "2 x"), ("mini_ogbg", "10 x"), (lengths.OVER, "10, 2 x")} < found
    said = [text.get_text() for text in lengths.by_place(several).findobj(Text)]
    assert "10 times (criteo1tb: 2) that length" in said
    said = [text.get_text() for text in figures.best_window(several).findobj(Text)]
    assert "mean, 10 times (criteo1tb: 2)" in said


def test_one_length_alone_is_compared_with_nothing(tmp_path):
    made(tmp_path / "runs", "mini_ogbg", 0, 0.9)
    assert lengths.of(evidence(tmp_path)) == {}


def test_a_single_long_seed_shows_its_best_horizon_without_an_interval(tmp_path):
    for seed in range(3):
        made(tmp_path / "runs", "mini_ogbg", seed, 0.9)
    made(tmp_path / "runs", "mini_ogbg", 0, 0.5, part="B", steps=LONG)
    found = next(one for one in conclusions.all_of(evidence(tmp_path)) if one.number == "2")
    assert found.measured.startswith("B ogbg ")
    assert "(" not in found.measured
    assert found.measured.endswith("0 inside, 0 outside")
    assert not found.enough


def test_the_best_horizon_is_that_of_each_workloads_longest_runs(tmp_path):
    def horizon() -> tuple[str, bool]:
        found = next(one for one in conclusions.all_of(evidence(tmp_path)) if one.number == "2")
        assert (found.measured.count("C "), found.measured.count("B ")) == lengths
        return found.word, found.enough

    for seed in range(3):
        for workload in MARGINS:
            made(tmp_path / "runs", workload, seed, 0.5, part="B", steps=10 * STEPS, window=0.02 + 0.0002 * seed)
    lengths = 0, 8
    assert horizon() == ("confirmed", True)
    for seed in range(3):
        made(tmp_path / "runs", "mini_ogbg", seed, 0.5, part="C", steps=30 * STEPS, window=0.3 + 0.003 * seed)
    lengths = 1, 7
    assert horizon() == ("confirmed", False)  # of the planned ones the other is not there
    for seed in range(3):
        made(tmp_path / "runs", "mini_finewebedu_lm", seed, 0.5, part="C", steps=30 * STEPS, window=0.3)
    lengths = 2, 6
    assert horizon() == ("confirmed", True)
    for workload in list(MARGINS)[:2]:
        shutil.rmtree(tmp_path / "runs/B" / workload)
    assert next(one for one in conclusions.all_of(evidence(tmp_path)) if one.number == "2").enough is False
