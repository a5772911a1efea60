"""The published leaderboards come out: scores, medians, and the committed analyses of them."""

import os
import subprocess
import sys
import tarfile
import time

import numpy as np
import pandas as pd
import pytest

from analysis.measures import results, score, to_target
from analysis.measures.to_target import Measured
from analysis.published import algoperf_v05, leaderboard_a100
from analysis.reading import logs
from analysis.targets import resolve
from tests.support import ROOT, published
from weight_averaging.errors import UsageError

# A checkout of mlcommons/submissions_algorithms, whose folder scoring/ the medians are compared with.
OFFICIAL = os.environ.get("ALGOPERF_SCORING")
MEDIANS = """
import sys
from scoring import config, performance_profile, scoring_utils
from pathlib import Path
logs, targets, ruleset, out = sys.argv[1:]
settings = config.WorkloadConfig.from_json(f"scoring/{targets}.json")
runs = {path.name: scoring_utils.get_experiment_df(str(path)) for path in sorted(Path(logs).iterdir())}
performance_profile.compute_performance_profiles(
    runs, settings, "score", 1.0, 4.0, self_tuning_ruleset=ruleset == "self", output_dir=out)
"""


@pytest.fixture(scope="module")
def leaderboard():
    path = published.need(published.A100)
    start = time.process_time()
    found = results.of(logs.read(path))
    return found, time.process_time() - start


def test_the_current_leaderboard_comes_out(leaderboard):
    found, seconds = leaderboard
    assert found.scores.round(4).to_dict() == published.SCORES_A100
    assert list(found.scores.index) == list(published.SCORES_A100)  # and so do the ranks
    assert {key: found.targets.attrs[key] for key in ("version", "ruleset", "gpus", "workloads")} == {
        "version": "v0.6-a100", "ruleset": "self", "gpus": 4, "workloads": 9}  # fmt: skip
    assert seconds < 5  # about half a second on an idle machine


def test_its_baseline_unit_and_budget_are_found(leaderboard):
    found, _ = leaderboard
    assert (found.baseline, found.unit) == ("nadamw", "seconds")
    assert found.targets.loc["fastmri", "budget_s"] == 1.5 * 2745


def test_who_reaches_less_is_not_cheaper(leaderboard):
    found, _ = leaderboard
    spent = found.hours["hours"]
    assert spent["schedule_free_adamw_v2"] < spent["single_worker_dilocov2"]


@pytest.mark.parametrize(
    ("keep", "version"),
    [
        (["finewebedu_lm"], "v0.6-a100"),
        (["fastmri", "wmt"], "v0.6-a100"),  # by the budget
        (["criteo1tb", "mnist_of_another_kind"], "v0.6-a100"),
    ],
)
def test_some_workloads_of_it_are_enough(leaderboard, keep, version):
    whole = leaderboard[0].logs
    part = whole.select(whole.runs["workload"].isin(keep))
    found = results.of(part)
    assert found.targets.attrs["version"] == version
    assert found.scores.max() <= len(keep) / 9  # the share is of all nine
    assert any("of the version's 9 workloads have no run" in line for line in found.notes)


def test_without_the_ninth_workload_and_meta_data_it_is_the_version_before(leaderboard):
    whole = leaderboard[0].logs
    part = whole.select(whole.runs["workload"] != "finewebedu_lm")
    part = logs.Logs(part.runs.assign(meta=[{}] * len(part.runs)), part.evaluations, part.columns, part.skipped)
    assert resolve.resolve(part).attrs["version"] == "v0.6"
    with pytest.raises(UsageError, match=r"says? max_allowed_runtime_sec .* v0.6 has .*--version=v0.6-a100"):
        resolve.resolve(whole, "v0.6")


@pytest.mark.skipif(OFFICIAL is None, reason="no checkout of the official scoring code; name one in ALGOPERF_SCORING")
@pytest.mark.parametrize(
    ("path", "inside", "official", "ruleset", "tolerance"),
    [
        (published.A100, "algoperf_a100/self_tuning", "workload_targets", "self", 0.0),
        # Where two trials have as many evaluations the official code takes the one that is listed first.
        (published.V05, "external_tuning", "workload_targets_v05", "external", 0.03),
    ],
    ids=["a100", "v0.5"],
)
def test_all_medians_are_the_official_ones(path, inside, official, ruleset, tolerance, tmp_path):
    with tarfile.open(published.need(path)) as archive:
        archive.extractall(tmp_path, filter="data")
    command = [sys.executable, "-c", MEDIANS, str(tmp_path / inside), official, ruleset, str(tmp_path)]
    subprocess.run(command, cwd=OFFICIAL, check=True, capture_output=True, timeout=300)
    theirs = pd.read_csv(tmp_path / "time_to_targets.csv", index_col=0)
    found = results.of(logs.read(tmp_path / inside))
    ours = found.times.loc[theirs.index, theirs.columns].astype(float)
    assert (np.isinf(ours) == np.isinf(theirs)).all().all()
    assert (ours.isna() == theirs.isna()).all().all()
    finite = np.isfinite(theirs)
    assert ((ours / theirs)[finite] - 1).abs().max().max() <= tolerance + 1e-12


def test_the_committed_analysis_of_the_leaderboard_is_what_its_command_makes(tmp_path):
    path = published.need(published.A100)
    command = [sys.executable, "-m", "scripts.published.leaderboard_a100", f"--logs={path}", f"--out={tmp_path}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    committed = ROOT / "docs/results/leaderboard_a100"
    assert (tmp_path / "tables.md").read_text() == (committed / "tables.md").read_text()
    assert {file.name for file in tmp_path.glob("*.png")} == {file.name for file in committed.glob("*.png")}


@pytest.fixture(scope="module")
def v05():
    path = published.need(published.V05)
    start = time.process_time()
    read = logs.read(path)
    measured = Measured(read, resolve.resolve(read))
    scores, _ = score.score(to_target.submissions(measured.best), measured.targets)
    return measured, scores, time.process_time() - start


def test_the_published_scores_come_out(v05):
    assert v05[1].round(4).to_dict() == published.SCORES_V05


def test_the_published_logs_are_read_in_seconds(v05):
    measured, _, seconds = v05
    read = measured.logs
    # All 3,718 files: 18 of them lie outside a workload's folder.
    assert len(read.runs) + read.skipped["reason"].str.startswith("not in a folder").sum() == 3718
    assert seconds < 10  # about 3 s on an idle machine


def test_the_published_medians(v05):
    times = to_target.submissions(v05[0].best).round()
    base = ["criteo1tb", "fastmri", "imagenet_vit", "ogbg", "wmt", "librispeech_conformer", "librispeech_deepspeech"]
    expected = [7208, 2030, 70197, 7697, 41189, 54769, 36024]
    assert times.loc["baseline", base].tolist() == expected
    assert np.isinf(times.loc["baseline", "imagenet_resnet"])
    assert times.loc["lawa_queue", base[:5]].tolist() == [np.inf, 1971, 51189, 4617, 27171]
    assert times.loc["lawa_ema", base[:5]].tolist() == [5303, 2556, 61886, 10597, 43034]


def test_the_committed_analysis_of_v05_is_what_its_command_makes(v05, tmp_path):
    command = [
        sys.executable,
        "-m",
        "scripts.published.algoperf_v05",
        f"--logs={published.V05}",
        f"--out={tmp_path}",
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    committed = ROOT / "docs/results/published_v05"
    assert (tmp_path / "tables.md").read_text() == (committed / "tables.md").read_text()
    assert {path.name for path in tmp_path.glob("*.png")} == {path.name for path in committed.glob("*.png")}


@pytest.mark.parametrize("write", [algoperf_v05.write, lambda *given: leaderboard_a100.write(*given, "none.csv")])
def test_logs_that_are_not_there_leave_no_folder(write, tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        write(str(tmp_path / "none"), str(tmp_path / "out"))
    assert not list(tmp_path.iterdir())
