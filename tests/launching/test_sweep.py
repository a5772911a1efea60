"""Sweeps: the jobs of a grid, its cost, and a sweep on this machine that fails, is repeated and resumes."""

import importlib
import json
import os
import pickle
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("submitit")

from launching import paper, sweep
from launching.official_workloads import SEVEN
from miniperf import search
from tests.support.killing import killed_at_every_change
from tests.support.warm_python import python
from weight_averaging.errors import UsageError

ROOT = Path("tuning_search_spaces")


def test_the_papers_grids_are_those_of_the_declaration_and_can_be_trained_with():
    expected = dict(paper.spaces(ROOT))
    assert set((ROOT / "paper").rglob("*.json")) == set(expected)
    assert len(expected) == len(SEVEN) * len(paper.EXPERIMENTS) + len(paper.LM_EXPERIMENTS) + len(paper.LM_SUBMISSIONS)
    for path, text in expected.items():
        assert path.read_text() == text, f"{path}: run python -m launching.paper"
        experiments = paper.LM_EXPERIMENTS if path.parent.name == paper.LANGUAGE_MODEL else paper.EXPERIMENTS
        name = path.stem if path.stem in paper.LM_SUBMISSIONS else experiments[path.stem].submission
        submission = importlib.import_module(f"submissions.pytorch.{name}.submission")
        points = search.load(path, None)
        assert len({tuple(point) for point in points}) == len(points)
        for point in points:
            submission.check_hyperparameters(point, 10_000)


def test_the_language_models_grid_is_table_3():
    points = search.load(ROOT / "paper" / paper.LANGUAGE_MODEL / "grid_adamw.json", None)
    assert len(points) == 5 * 2**4
    assert sorted({point.learning_rate for point in points}) == [3e-4, 1e-3, 3e-3, 1e-2, 3e-2]


def test_a_grid_has_every_combination_around_the_workloads_point():
    points = paper.grid(
        paper.Experiment("lawa", "", {"learning_rate": (0.5, 2.0), "n": (1, 2, 3)}), {"learning_rate": 0.1}
    )
    assert [(p["learning_rate"], p["n"]) for p in points] == [
        (0.05, 1),
        (0.05, 2),
        (0.05, 3),
        (0.2, 1),
        (0.2, 2),
        (0.2, 3),
    ]


def test_ranges_are_drawn_once_and_another_draw_is_refused(tmp_path):
    source = tmp_path / "ranges.json"
    source.write_text('{"lr": {"min": 1e-4, "max": 1e-2, "scaling": "log"}}')
    path = tmp_path / "sweep" / "ranges.json"
    points = sweep.expand(str(source), 4, 0, path, write=True)
    assert len(points) == 4
    assert json.loads(path.read_text()) == points == sweep.expand(str(source), 4, 0, path, write=True)
    with pytest.raises(UsageError, match="other points"):
        sweep.expand(str(source), 4, 1, path, write=True)


def test_what_a_kill_leaves_of_the_points_refuses_no_later_start(tmp_path):
    source, home = tmp_path / "ranges.json", tmp_path / "runs"
    source.write_text('{"lr": {"min": 1e-4, "max": 1e-2, "scaling": "log"}}')
    home.mkdir()
    path = home / "sweep" / "ranges.json"
    points = sweep.expand(str(source), 4, 0, path, write=False)
    for _ in killed_at_every_change(home, sweep.expand, str(source), 4, 0, path, True):
        assert sweep.expand(str(source), 4, 0, path, write=True) == points
        assert json.loads(path.read_text()) == points


def test_cost_of_a_trial():
    cost = sweep.cost("ogbg", 8, {"averaging_window": 20})
    assert cost.hours == pytest.approx(11_303 / 3600 * 8)
    assert cost.gigabytes == pytest.approx(4e-9 * 3_554_176 * (3 + 20 + 1))
    assert sweep.cost("ogbg", 0, {}).gigabytes == pytest.approx(4e-9 * 3_554_176 * 3)


def test_a_sum_of_costs():
    assert sweep.text_of([sweep.Cost(1.0, 1.0), sweep.Cost(4.0, 0.5)]) == "up to 5.0 GPU-hours, 1.5 GB"
    assert sweep.text_of([]) == "up to 0.0 GPU-hours, 0.0 GB"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--tuning_search_space=tuning_search_spaces/nadamw.json"],
            "nadamw.json does not fit submissions/pytorch/lawa",
        ),
        (["--gpus=5"], "--gpus=5: the batch of 64 on finewebedu_lm does not divide by it"),
        (["--workloads=fineweb"], "--workload=fineweb is unknown to the official harness"),
    ],
)
def test_a_sweep_that_could_not_run_is_not_planned(flags, words, tmp_path):
    command = [python(), "-m", "scripts.sweep", "--submission=lawa", "--workloads=finewebedu_lm", "--gpus=4"]
    result = subprocess.run([*command, f"--experiment_dir={tmp_path}", *flags], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def run(folder: Path, *flags: str) -> subprocess.CompletedProcess:
    command = [
        python(), "-m", "scripts.sweep", "--submission=lawa", "--harness=miniperf",
        "--workloads=mini_imagenet_vit", f"--experiment_dir={folder}",
        "--num_tuning_trials=2", "--run_flags=--max_global_steps=3", *flags,
    ]  # fmt: skip
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )


def test_a_sweep_on_this_machine_leaves_finished_jobs_out(tmp_path):
    result = run(tmp_path)
    assert result.returncode == 0, result.stderr
    *_, last, following = result.stdout.splitlines()
    assert last.startswith("done: mini_imagenet_vit-lawa-study_1-trial_2: best validation/accuracy 0.")
    assert following == f"next: python -m scripts.report --runs={tmp_path}"
    trials = [tmp_path / f"lawa/study_1/mini_imagenet_vit_pytorch/trial_{trial}" for trial in (1, 2)]
    rates = [json.loads((trial / "hparams.json").read_text())["learning_rate"] for trial in trials]
    assert rates == [point["learning_rate"] for point in json.loads((ROOT / "miniperf/lawa.json").read_text())[:2]]
    assert all((trial / "checkpoint_3").is_file() for trial in trials)
    # As if the second had been cancelled.
    (tmp_path / "sweep" / "mini_imagenet_vit-lawa-study_1-trial_2.done").unlink()
    (trials[1] / "checkpoint_3").unlink()
    first = (trials[0] / "checkpoint_3").stat().st_mtime_ns
    result = run(tmp_path)
    assert "1 of 2 jobs to run" in result.stdout
    assert (trials[1] / "checkpoint_3").is_file()
    assert (trials[0] / "checkpoint_3").stat().st_mtime_ns == first
    assert "nothing to do" in run(tmp_path, "--dry_run").stdout


def test_under_miniperf_a_job_has_a_rank_for_each_of_its_gpus(tmp_path):
    flags = ["--dry_run", "--workloads=finewebedu_lm_124m", "--submission=adamw_lawa"]
    several, one = run(tmp_path, *flags, "--gpus=8").stdout, run(tmp_path, *flags, "--gpus=1").stdout
    assert "-m torch.distributed.run --standalone --nproc_per_node=8 -m scripts.run --harness=miniperf" in several
    assert "torch.distributed" not in one
    assert f"--tuning_search_space={tmp_path}/sweep/adamw_lawa.json" in one
    result = run(tmp_path, "--dry_run", "--workloads=finewebedu_lm_124m,mini_wmt", "--submission=adamw_lawa")
    assert result.returncode == 2
    assert "have search spaces of their own" in result.stderr


def jobs_of(folder: Path, workloads: str) -> list[sweep.Trial]:
    common = {"framework": "pytorch", "submission": "lawa", "seed": 1, "trials": [1], "search_space": None}
    common |= {"experiment_dir": folder, "harness": "official", "points": 1}
    return [sweep.Trial(workload=name, **common) for name in workloads]


def test_a_job_goes_through_a_pickle_as_submitit_sends_it(tmp_path):
    job = jobs_of(tmp_path, "a")[0]
    sent = pickle.loads(pickle.dumps(job.checkpoint())).function
    assert (sent.name, sent.command(), sent.marker) == (job.name, job.command(), job.marker)


def write_gpus(path: Path) -> list[str]:
    return [python(), "-c", f"import os; open({str(path)!r}, 'w').write(os.environ['CUDA_VISIBLE_DEVICES'])"]


def test_jobs_at_a_time_have_gpus_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep.Trial, "command", lambda job: write_gpus(tmp_path / job.workload))
    jobs = jobs_of(tmp_path, "abc")
    assert sweep.start_here(jobs, at_a_time=2, gpus=4) == 0
    gpus = {job.workload: (tmp_path / job.workload).read_text() for job in jobs}
    assert (gpus["a"], gpus["b"]) == ("0,1,2,3", "4,5,6,7")
    assert gpus["c"] in (gpus["a"], gpus["b"])
    assert all(job.finished() for job in jobs)


@pytest.mark.skipif(shutil.which("sinfo") is not None, reason="there is a Slurm here")
def test_a_sweep_that_slurm_does_not_take_leaves_nothing(tmp_path):
    space = tmp_path / "ranges.json"
    point = json.loads(Path("tuning_search_spaces/lawa.json").read_text())[0]
    space.write_text(json.dumps({name: {"feasible_points": [value]} for name, value in point.items()}))
    flags = ["--submission=lawa", "--workloads=ogbg", "--gpus=4", "--engine=slurm", f"--experiment_dir={tmp_path}/runs"]
    command = [python(), "-m", "scripts.sweep", *flags, f"--tuning_search_space={space}", "--num_tuning_trials=2"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "Slurm" in result.stderr
    assert not (tmp_path / "runs").exists()
