"""The tables of the evidence, on made runs whose answers are known."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.evidence import conclusions, data, page, ratios, summaries
from analysis.evidence.ratios import Pair
from analysis.evidence.summaries import DECAY, MARGINS, PRIMARY
from tests.support import ROOT, commands
from weight_averaging.errors import UsageError

STEPS, EVERY = 2000, 20
WINDOWS = {"lawa_0.5": 10, "lawa_1": 20, "lawa_2": 40, "lawa_4": 80, "lawa_8": 160, "lawa_16": 320}
BEST_WINDOW = 0.12  # of the elapsed updates


def loss(step, speed: float = 1.0):
    """Of a run that learns `speed` times as fast: it falls by 10 in all of training, and the slower the later."""
    return 10 - 10 * np.minimum(1.0, speed * np.asarray(step, dtype=float) / STEPS)


def made(
    source: Path, workload: str, seed: int, ratio: float, variant: str = DECAY, part: str = "A", steps: int = STEPS,
    accuracy: bool = False, at_end: float = 0.0, window: float = BEST_WINDOW, **changes,
) -> None:  # fmt: skip
    """A run in which the growing average needs `ratio` of the raw run's updates, LAWA of 1 % exactly as many.

    Args:
        accuracy: more is better, instead of a loss.
        at_end: by how much the growing average is better at the end.
        window: the best one, of the elapsed updates.
    """
    every = steps // 100
    at = np.array([1, *range(every, steps + 1, every)])
    scaled = at * (STEPS / steps)
    raw, growing = loss(scaled), loss(scaled, 1 / ratio)
    growing[-1] = raw[-1] - at_end
    table = {"step": at, "seconds": at / 10.0, "validation": raw, "test": np.where(at % (10 * every) == 0, raw, np.nan)}
    table["validation@growing_15"], table["validation@lawa_1"] = growing, raw.copy()
    for name in WINDOWS:
        if name != "lawa_1":
            part_of = WINDOWS[name] / STEPS * steps / at
            values = raw + 0.1 * np.log(part_of / window) ** 2
            table[f"validation@{name}"] = np.where((at % (5 * every) == 0) & (part_of <= 1), values, np.nan)
    here = (at % (5 * every) == 0) & (at >= 20)
    table["validation@lawa_1"][here] = (raw + 0.1 * np.log(WINDOWS["lawa_1"] / STEPS * steps / at / window) ** 2)[here]
    table = {name: -v if accuracy and name.startswith("validation") else v for name, v in table.items()}
    facts = {
        "part": part, "workload": workload, "variant": variant, "seed": seed, "submission": "nadamw",
        "schedule": "warmup_cosine", "learning_rate": 0.01, "rate_at_edge": False, "length": steps / STEPS,
        "steps": steps, "batch_size": 8, "passes": 1.0, "metric": "accuracy" if accuracy else "loss",
        "higher_is_better": accuracy,
        "target_share": 0.5, "validation_target": -5.0 if accuracy else 5.0, "test_target": 5.0,
        "submission_seconds": 1.0, "evaluation_seconds": 1.0,
        "intervals": dict.fromkeys([*WINDOWS, PRIMARY], 1),
        "windows": {**{name: int(window * steps / STEPS) for name, window in WINDOWS.items()}, PRIMARY: None},
    }  # fmt: skip
    home = source / part / workload / variant
    home.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(table).to_csv(home / f"seed_{seed}.csv", index=False)
    (home / f"seed_{seed}.json").write_text(json.dumps({**facts, **changes}))


def evidence(tmp_path: Path) -> data.Evidence:
    data.collect(tmp_path / "runs", tmp_path / "data")
    return data.load(tmp_path / "data")


RATIOS = [0.7, 0.75, 0.8, 0.9, 0.72]


@pytest.mark.parametrize("accuracy", [False, True])
def test_ratios_and_their_intervals_are_those_of_the_made_runs(tmp_path, accuracy):
    for seed, ratio in enumerate(RATIOS):
        made(tmp_path / "runs", "mini_wmt", seed, ratio, accuracy=accuracy)
        made(tmp_path / "runs", "mini_ogbg", seed, 0.5, accuracy=accuracy)
    runs = evidence(tmp_path).of("A", DECAY)
    found = summaries.to_target(runs, PRIMARY)
    logs = np.log(RATIOS)
    reach = stats.t.ppf(0.975, 4) * logs.std(ddof=1) / math.sqrt(5)
    one = found.workloads["mini_wmt"]
    expected = np.exp([logs.mean(), logs.mean() - reach, logs.mean() + reach])
    assert [one.ratio, one.low, one.high] == pytest.approx(expected, rel=1e-3)
    assert (one.bound, one.seeds, one.verdict) == ("", 5, "sooner")
    assert found.workloads["mini_ogbg"].ratio == pytest.approx(0.5, rel=1e-3)
    means = np.array([np.log(0.5), logs.mean()])
    over = stats.t.ppf(0.975, 1) * means.std(ddof=1) / math.sqrt(2)
    assert [found.any.low, found.any.high] == pytest.approx(
        np.exp([means.mean() - over, means.mean() + over]), rel=1e-3
    )
    for share in (0.1, 0.5, 0.9):  # the same at every place
        ahead = summaries.by_share(runs, PRIMARY, share)
        assert ahead.workloads["mini_wmt"].ratio == pytest.approx(np.exp(logs.mean()), rel=1e-3)


def test_a_miss_counts_with_the_whole_run_and_leaves_an_end_open(tmp_path):
    for seed in range(3):
        made(tmp_path / "runs", "mini_wmt", seed, 0.8, validation_target=-1.0)  # of a loss that ends at 0
        made(tmp_path / "runs", "mini_ogbg", seed, 0.8, validation_target=0.5)
    runs = evidence(tmp_path).of("A", DECAY)
    found = summaries.to_target(runs, PRIMARY)
    assert found.workloads["mini_wmt"].ratio == 1.0
    assert found.workloads["mini_wmt"].bound == "?"
    assert found.workloads["mini_ogbg"].ratio == pytest.approx(0.8, rel=1e-3)
    assert (found.missing, found.whole) == (1, None)  # too few without
    assert found.says() == "open"


def test_a_single_seed_has_no_interval():
    found = ratios.summary({"a": [Pair(-0.1, False), Pair(-0.1001, False)], "b": [Pair(-0.5, False)]})
    assert found.workloads["a"].shown().startswith("0.90 (")
    assert found.workloads["b"].shown() == "0.61"
    assert found.suite.shown() == "0.74"
    assert found.any.shown().startswith("0.74 (")
    assert found.workloads["b"].verdict == found.suite.verdict == "open"


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=8), st.booleans())
def test_a_claim_over_all_workloads_needs_those_without_misses_too(logs, miss):
    pairs = {f"w{i}": [Pair(log, False), Pair(log, False)] for i, log in enumerate(logs)}
    pairs["missed"] = [Pair(-3.0, False, miss), Pair(-3.0, False, miss)]
    found = ratios.summary(pairs)
    assert found.missing == miss
    if not miss:
        assert found.whole is None
        assert found.says() == found.any.verdict
    else:
        assert found.whole.ratio == pytest.approx(np.exp(np.mean(logs)))
        assert found.says() in ("open", found.whole.verdict)


def test_an_average_is_held_against_the_raw_weights_at_its_own_evaluations(tmp_path):
    made(tmp_path / "runs", "mini_wmt", 0, 0.8)
    run = evidence(tmp_path).runs[0]
    for name, count in (("raw", 100), (PRIMARY, 100), ("lawa_4", 20)):
        steps, values = run.curve(name)
        assert len(steps) == count
        raw_steps, raw = run.curve("raw", grid=name)
        assert list(raw_steps) == list(steps)
        if name == "lawa_4":
            assert list(steps) == list(range(100, STEPS + 1, 100))
        if name == "raw":
            assert list(values) == list(raw)
    steps, values = run.curve("lawa_16")
    assert list(steps) == list(range(100, STEPS + 1, 100))
    assert list(values[steps < 320]) == list(
        run.curve("raw", grid="lawa_16")[1][steps < 320]
    )  # not ready: the raw weights


def test_a_last_evaluation_off_the_grid_counts_for_all():
    at = np.array([1, 30, 60, 90, 100])
    table = pd.DataFrame({"step": at, "validation": loss(at), "validation@rare": np.where(at % 60 == 0, 1.0, np.nan)})
    table.loc[4, "validation@rare"] = 0.5
    run = data.Run({"steps": 100, "higher_is_better": False}, table)
    assert [list(part) for part in run.curve("rare")] == [[60, 100], [-1.0, -0.5]]
    assert list(run.curve("raw")[0]) == [30, 60, 90, 100]
    assert run.final("rare") == 0.5


def test_a_run_that_diverges_at_the_end_has_no_final_metric():
    """Its last number, or the raw weights' in the place of a NaN of the average, would flatter it."""
    nan, inf = np.nan, np.inf
    columns = {"validation": [5, 4, 3, inf], "validation@late": [nan, 4, nan, nan], "validation@never": [nan] * 4}
    run = data.Run({"steps": 80, "higher_is_better": False}, pd.DataFrame({"step": [20, 40, 60, 80], **columns}))
    assert [math.isnan(run.final(name)) for name in ("raw", "late", "never")] == [True] * 3
    assert [list(run.curve(name)[1]) for name in ("raw", "late")] == [[-5, -4, -3], [-4]]
    run.table.loc[3, "validation"] = 2
    assert run.final("raw") == run.final("never") == 2
    assert math.isnan(run.final("late"))


@given(st.integers(0, 2**32 - 1), st.floats(0.2, 0.9))
def test_rare_evaluations_make_no_gain(seed, share):
    """An average that is the raw weights needs as many updates as they, though it is evaluated five times as rarely."""
    at = np.arange(20, STEPS + 1, 20)
    raw = loss(at) ** 1.5 + np.random.default_rng(seed).normal(size=len(at))
    table = pd.DataFrame({"step": at, "validation": raw, "validation@same": np.where(at % 100 == 0, raw, np.nan)})
    run = data.Run({"steps": STEPS, "higher_is_better": False}, table)
    assert ratios.along(run, "same", share).log == 0
    level = float(np.quantile(-raw, share))
    assert ratios.pair(run, "same", level).log == 0


def test_the_target_of_a_longer_run_is_found_anew(tmp_path):
    for seed in range(3):
        made(tmp_path / "runs", "mini_wmt", seed, 0.8, part="B", steps=10 * STEPS, target_share=0.3)
        made(tmp_path / "runs", "mini_wmt", seed, 0.8)
    found = evidence(tmp_path)
    assert ratios.target(found.of("B", DECAY)["mini_wmt"]) == pytest.approx(-7.0)  # a loss of 7 at 30 %
    assert ratios.target(found.of("A", DECAY)["mini_wmt"]) == -5.0


def test_the_best_window_is_found_as_a_share_of_the_elapsed_updates(tmp_path):
    for workload in MARGINS:
        for seed in range(3):
            made(tmp_path / "runs", workload, seed, 0.8)
    runs = evidence(tmp_path).of("A", DECAY)
    for moment in (0.3, 0.5, 0.7):
        optima = summaries.best_windows(runs, moment)
        assert set(optima) == set(MARGINS)
        middle, low, high = summaries.common(optima)
        assert (middle, low, high) == pytest.approx([BEST_WINDOW] * 3, rel=1e-3)


@pytest.mark.parametrize(
    ("difference", "word"), [(0.0, "within"), (0.001, "within"), (0.01, "better"), (-0.01, "worse")]
)
@pytest.mark.parametrize("accuracy", [False, True])
def test_differences_of_scores_are_held_against_the_margin(tmp_path, difference, word, accuracy):
    for seed in range(5):
        made(tmp_path / "runs", "mini_criteo1tb", seed, 0.8, at_end=difference + 1e-5 * seed, accuracy=accuracy)
    found = summaries.differences(evidence(tmp_path).of("A", DECAY), PRIMARY)["mini_criteo1tb"]
    assert found.mean == pytest.approx(difference + 2e-5)
    assert (found.word, found.margin, found.seeds) == (word, MARGINS["mini_criteo1tb"], 5)


def everything(source: Path, seeds: int, ratio: float) -> None:
    for number, workload in enumerate(MARGINS):
        for seed in range(seeds):
            speed = ratio * (1 + 0.01 * seed + 0.02 * number)
            made(source, workload, seed, speed, window=BEST_WINDOW * (1 + 0.05 * number))
            made(source, workload, seed, speed, variant="nadamw_no_decay", at_end=-100 * MARGINS[workload])


def words(tmp_path: Path) -> dict[str, tuple[str, bool]]:
    return {one.number: (one.word, one.enough) for one in conclusions.all_of(evidence(tmp_path))}


def test_conclusions_follow_the_rules(tmp_path):
    everything(tmp_path / "runs", 5, 0.68)
    assert words(tmp_path) == {
        "1": ("confirmed", True),
        "1b": ("confirmed", True),  # .70 to .78 holds .73
        "2b": ("undecided", True),  # one length only
        "5": ("confirmed", True),
        "6": ("undecided", True),  # worse than decay, and worse than raw
    }
    for workload in MARGINS:
        for seed in range(3):
            window = BEST_WINDOW * (1 + 0.01 * len(workload))
            made(tmp_path / "runs", workload, seed, 0.5 + 0.01 * seed, part="B", steps=10 * STEPS, window=window)
    found = words(tmp_path)
    assert found["3"] == ("confirmed", True)
    assert found["3b"] == ("confirmed", True)
    assert found["2b"] == ("confirmed", True)


def test_conclusions_on_lengths_schedules_batches_and_optimizers(tmp_path):
    for workload in MARGINS:
        for seed in range(5):
            made(tmp_path / "runs", workload, seed, 0.8)
            made(tmp_path / "runs", workload, seed, 0.9 + 0.001 * seed, part="F", variant="soap")
            made(tmp_path / "runs", workload, seed, 1.1, part="F", variant="shampoo")
        for seed in range(3):  # half-way, where the target lies, 2 % of the elapsed updates are 1 % of the run
            best = 0.02 * (1 + 0.01 * seed)
            made(tmp_path / "runs", workload, seed, 0.5, part="B", steps=10 * STEPS, window=best)
            made(tmp_path / "runs", workload, seed, 0.7 + 0.01 * seed, part="D", variant="cosine_to_0.1")
    for number, workload in enumerate(["mini_finewebedu_lm", "mini_imagenet_vit", "mini_ogbg"]):
        for seed in range(3):
            made(tmp_path / "runs", workload, seed, 0.8, part="E", variant="batch_4", window=0.06 + 0.001 * number)
            made(tmp_path / "runs", workload, seed, 0.8, part="E", variant="batch_0.25", window=0.12)
    found = {(one.number, one.claim.partition(": ")[2]): one for one in conclusions.all_of(evidence(tmp_path))}
    assert {key: (one.word, one.enough) for key, one in found.items() if key[0] in "2789"} == {
        ("2", ""): ("confirmed", True),
        ("7", "soap"): ("confirmed", True),
        ("7", "shampoo"): ("refuted", True),
        ("8", ""): ("confirmed", True),
        ("9", ""): ("confirmed", True),
    }
    assert found["8", ""].ratio.ratio == pytest.approx(np.exp(np.log([0.7, 0.71, 0.72]).mean()), rel=1e-3)
    assert found["9", ""].measured.startswith("1.9")


def test_few_seeds_decide_nothing_and_no_gain_is_refuted(tmp_path):
    everything(tmp_path / "runs", 2, 1.0)
    found = words(tmp_path)
    assert found["1"] == ("refuted", False)
    assert found["1b"] == ("refuted", False)
    assert not any(enough for _, enough in found.values())


def test_the_command_collects_and_writes_the_page_from_the_numbers_alone(tmp_path):
    everything(tmp_path / "runs", 2, 0.8)
    for seed in (2, 3):
        made(tmp_path / "runs", "mini_wmt", seed, 0.9)  # as far as the runs have come
    search = tmp_path / "runs/A/mini_wmt/nadamw_no_decay/search"
    search.mkdir()
    for kind in ("csv", "json"):
        (tmp_path / f"runs/A/mini_wmt/nadamw_no_decay/seed_0.{kind}").rename(search / f"rate_0.01.{kind}")
    page_folder = tmp_path / "page"
    done = commands.run("evidence_page", f"--collect={tmp_path / 'runs'}", f"--folder={page_folder}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"{page_folder / 'data'}: 33 runs, 1 of searches"
    first = (page_folder / "README.md").read_text()
    assert first.count("**Unfinished.**") == 1
    assert "Not run: B (ten times the schedule, flights twice, without translation, 3 seeds)" in first
    assert "| 1 " in first
    assert {path.name for path in page_folder.glob("*.png")} == {
        "forest.png", "curves.png", "along.png", "constant.png", "best_window.png", "growing_over_best.png",
    }  # fmt: skip
    assert (page_folder / "data/A_mini_wmt_nadamw.csv").read_text().startswith("seed,step,validation,test,")
    again = commands.run("evidence_page", f"--folder={page_folder}")
    assert again.returncode == 0, again.stderr
    assert (page_folder / "README.md").read_text() == first
    empty = commands.run("evidence_page", f"--collect={tmp_path / 'nothing'}", f"--folder={page_folder}")
    assert empty.returncode == 2
    assert empty.stderr.startswith(f"error: --collect={tmp_path / 'nothing'} has no finished run")


def test_a_folder_without_numbers_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"has no runs\.csv"):
        data.load(tmp_path)


def test_the_committed_page_is_made_from_the_committed_numbers(tmp_path):
    home = ROOT / "docs/results/evidence"
    written = page.write(data.load(home / "data"), tmp_path)
    assert (tmp_path / "README.md").read_text() == (home / "README.md").read_text()
    assert all((home / path.name).exists() for path in written)
