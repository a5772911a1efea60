"""The study of published submissions, on made runs whose answers are known."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.evidence import data, published, published_page
from analysis.evidence.published import AVERAGES, LEAST, OTHER_RATE, WORKLOADS
from analysis.evidence.summaries import PRIMARY
from launching.evidence import plan
from tests.support import ROOT, commands

STEPS = 2000
BASES = ["ademamix", "adamg", "cautious_nadamw", "cyclic_lr", "lion", "muon", "nadamw"]
RATIOS = dict(zip(BASES, (0.7, 0.75, 0.8, 0.9, 0.72, 0.85, 0.78), strict=True))
OWN = ["schedule_free_adamw_v2", "weighted_schedule_free_adamw"]


def made(source: Path, name: str, workload: str, seed: int, ratio: float, part: str = "P", worse: bool = False) -> None:
    """A run that gets linearly beyond what it must, or stays below; all averages need `ratio` of its updates."""
    accuracy = workload == "mini_imagenet_vit"
    at = np.array([1, *range(40, STEPS + 1, 40)])
    raw, averaged = (np.minimum(1.0, at / STEPS / speed) for speed in (1.0, ratio))
    scale = -0.1 if worse else 0.1
    values = {"validation": raw, "test": raw, **{f"validation@{one}": averaged for one in AVERAGES}}
    sign = 1 if accuracy else -1
    table = {one: LEAST[workload] + sign * scale * value for one, value in values.items()}
    facts = {
        "part": part, "workload": workload, "variant": name, "seed": seed, "submission": f"board/{name}",
        "schedule": None, "learning_rate": 0.01, "rate_at_edge": False, "length": 1, "steps": STEPS, "batch_size": 8,
        "passes": 1.0, "metric": "accuracy" if accuracy else "loss", "higher_is_better": accuracy, "target_share": 0.5,
        "validation_target": 0.0, "test_target": 0.0, "submission_seconds": 1.0, "evaluation_seconds": 1.0,
        "averaging_share": 0.1, "intervals": dict.fromkeys(AVERAGES, 1), "windows": dict.fromkeys(AVERAGES),
    }  # fmt: skip
    home = source / part / workload / name
    home.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"step": at, "seconds": at / 10.0, **table}).to_csv(home / f"seed_{seed}.csv", index=False)
    (home / f"seed_{seed}.json").write_text(json.dumps(facts))


def everything(source: Path, seeds: int) -> None:
    for workload in WORKLOADS:
        for seed in range(seeds):
            for name, ratio in RATIOS.items():
                made(source, name, workload, seed, ratio)
            for name in OWN:
                made(source, name, workload, seed, 1.1)


def evidence(tmp_path: Path) -> data.Evidence:
    data.collect(tmp_path / "runs", tmp_path / "data")
    return data.load(tmp_path / "data")


def test_the_interval_is_over_submissions_that_do_not_average_themselves(tmp_path):
    everything(tmp_path / "runs", 3)
    found = published.submissions(evidence(tmp_path))
    total = published.over([one for one in found if not one.own_average], PRIMARY)
    assert total is not None
    logs = np.log(list(RATIOS.values()))
    reach = stats.t.ppf(0.975, 6) * stats.sem(logs)
    assert total.any.ratio == pytest.approx(np.exp(logs.mean()), rel=2e-3)
    assert (total.any.low, total.any.high) == pytest.approx(
        tuple(np.exp(logs.mean() + reach * np.array([-1, 1]))), 0.01
    )
    text = published_page._conclusions(found)
    assert "**confirmed**" in text.splitlines()[4]
    assert "7 of 7, 3 seeds" in text
    assert f"{total.any.ratio * 1.1:.2f}" in text.splitlines()[4]  # an update takes a tenth longer
    assert "unfinished (confirmed so far)" in text.splitlines()[5]  # two of five, all at 1.1
    assert "**Unfinished.**" in published_page._status(found)


def test_a_hopeless_rate_is_replaced_and_a_hopeless_workload_named(tmp_path):
    source = tmp_path / "runs"
    everything(source, 2)
    made(source, "lion", WORKLOADS[0], 0, 0.5, worse=True)
    (source / "P" / WORKLOADS[0] / "lion" / "seed_1.json").unlink()
    for seed in range(2):
        made(source, f"lion{OTHER_RATE}", WORKLOADS[0], seed, 0.9)
    made(source, "muon", "mini_imagenet_vit", 0, 0.5, worse=True)
    made(source, f"muon{OTHER_RATE}", "mini_imagenet_vit", 0, 0.5, worse=True)
    made(source, "nadamw", WORKLOADS[1], 0, 0.5, worse=True)  # of which another rate is still to be run
    found = {one.name: one for one in published.submissions(evidence(tmp_path))}
    assert found["lion"].other == [WORKLOADS[0]]
    assert [np.exp(pair.log) for pair in found["lion"].pairs(PRIMARY)[WORKLOADS[0]]] == pytest.approx(
        [0.9] * 2, rel=5e-3
    )
    assert found["muon"].hopeless == ["mini_imagenet_vit"]
    assert set(found["muon"].pairs(PRIMARY)) == set(WORKLOADS) - {"mini_imagenet_vit"}
    assert found["nadamw"].missing == [WORKLOADS[1]]
    assert not found["nadamw"].seeds
    rows = published_page._each(list(found.values()))
    assert "best of three rates: criteo1tb" in rows
    assert "no rate good enough: imagenet_vit" in rows
    assert "not yet run: finewebedu_lm" in rows


def test_a_seed_counts_once_all_workloads_have_it(tmp_path):
    everything(tmp_path / "runs", 2)
    (tmp_path / "runs/P" / WORKLOADS[3] / "lion/seed_1.json").unlink()
    found = {one.name: one for one in published.submissions(evidence(tmp_path))}
    assert (found["lion"].seeds, found["muon"].seeds) == ([0], [0, 1])


def test_the_plan_is_that_of_the_rules():
    parts = plan.load(ROOT / "comparisons/evidence/published.yaml")
    first = {part: [one for one in variants if not one.instead_of] for part, variants in parts.items()}
    assert {part: len(variants) for part, variants in first.items()} == published.PLANNED
    own = [one for variants in first.values() for one in variants if published.OWN in one.name]
    assert (len(own), sum(published.OWN not in one.name for one in first["P"])) == (5, 7)
    for one in (one for variants in parts.values() for one in variants):
        assert one.hopeless == LEAST
        assert one.seeds == published.SEEDS
        assert one.workloads == list(WORKLOADS)
        assert set(one.every) == set(AVERAGES)
    assert plan.OTHER_RATE == OTHER_RATE
    assert all(any(other.instead_of == one.name for other in parts[part]) for part in parts for one in first[part])


def test_the_command_takes_over_runs_and_writes_the_page(tmp_path):
    everything(tmp_path / "runs", 1)
    asked = ["--study=published", f"--folder={tmp_path / 'page'}"]
    done = commands.run("evidence_page", *asked, f"--collect={tmp_path / 'runs'}")
    assert done.returncode == 0, done.stderr
    first = (tmp_path / "page/README.md").read_text()
    assert "unfinished (confirmed so far)" in first
    assert (tmp_path / "page/base_against_averaged.png").exists()
    assert commands.run("evidence_page", *asked).returncode == 0
    assert (tmp_path / "page/README.md").read_text() == first


def test_the_committed_page_is_made_from_the_committed_numbers(tmp_path):
    home = ROOT / "docs/results/published_submissions"
    written = published_page.write(data.load(home / "data"), tmp_path)
    assert (tmp_path / "README.md").read_text() == (home / "README.md").read_text()
    assert all((home / path.name).exists() for path in written)
