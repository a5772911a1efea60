"""The command: what it refuses, runs that it kills, and whole rehearsals of a stand-in for the harness; those of the
harness itself are in tests/official/test_rehearsals.py."""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from launching.official_workloads import WORKLOADS
from launching.rehearsal import drive, frameworks, table
from launching.rehearsal.record import UPDATED, Record
from tests.launching.rehearsal.records import STAND_IN, prepare, result
from tests.support.commands import ended
from tests.support.warm_python import python
from weight_averaging.errors import UsageError

CRITEO = drive.Cell(
    workload="criteo1tb", framework="pytorch", submission="lawa", gpus=0,
    submission_path="submissions/pytorch/lawa/submission.py", search_space="tuning_search_spaces/lawa.json",
)  # fmt: skip


@pytest.mark.parametrize("by", ["kill", "ended"])
def test_a_kill_takes_ranks_and_loaders_along(by):
    code = (
        "import subprocess, sys, time\n"
        "leaf = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
        "print(leaf.pid, flush=True)\n"
        "time.sleep(600)"
    )
    top = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert top.stdout is not None
    leaf = int(top.stdout.readline())
    if by == "kill":
        drive.kill(top.pid)
    else:
        assert ended(top, 0.1) == 124
    assert top.wait(10) == -9
    deadline = time.monotonic() + 10
    while psutil.pid_exists(leaf) and psutil.Process(leaf).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "left running"
        time.sleep(0.05)
    drive.kill(top.pid)  # of one that is over: nothing
    assert ended(top, 0.1) == -9


def test_a_run_is_killed_after_a_checkpoint_or_when_its_time_is_over(tmp_path):
    (tmp_path / "record").mkdir()
    record = Record(tmp_path / "record", 1)
    write = (
        "import json, time; open('record/events.jsonl', 'w').write(json.dumps({'event': 'saved', 'step': 4}) + chr(10))"
    )
    command = [sys.executable, "-c", f"{write}; time.sleep(600)"]
    assert drive._run(command, dict(os.environ), tmp_path, record, 4, 60) == -9
    assert drive._run(command, dict(os.environ), tmp_path, record, None, 1) == 124
    assert drive._run([sys.executable, "-c", "1/0"], dict(os.environ), tmp_path, record, 5, 60) == 1
    assert drive._last_error(tmp_path / "log.txt") == "ZeroDivisionError: division by zero"
    suicide = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    assert drive._run(suicide, dict(os.environ), tmp_path, record, 5, 60) == 137, "not the kill that was asked for"
    assert "signal 9 from outside" in drive._last_error(tmp_path / "log.txt")


# The command.


def command(*flags, cwd=None):
    words = [python(), "-m", "scripts.rehearse", *flags]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "give --workload or --all"),
        (["--workload=ogbg"], "give either --submission or --submission_path"),
        (["--workload=nope", "--submission=lawa", "--gpus=0"], "unknown to the official harness"),
        (["--workload=ogbg", "--submission=nope", "--gpus=0"], "--submission=nope is unknown; choose from"),
        (["--workload=ogbg", "--submission=lawa", "--gpus=99"], "--gpus=99: only"),
        (["--workload=ogbg", "--submission=lawa", "--gpus=0", "--framework=numpy"], "numpy"),
        (["--workload=ogbg", "--submission=lawa", "--gpus=0", "--ranks=2", "--framework=jax"], "--ranks is for"),
        (
            ["--workload=ogbg", "--submission=lawa", "--gpus=0", "--ranks=7", "--full_batch"],
            "--ranks=7: the batch of 512 on ogbg does not divide by it",
        ),
        (["--workload=ogbg", "--submission_path=/a/b.py", "--gpus=0"], "is absolute"),
        (["--workload=ogbg", "--submission=lawa", "--gpus=0", "--harness_path=/none"], "no sources of the harness"),
        (["--workload=ogbg", "--submission=lawa", "--gpus=0", "--dry_run"], "--dry_run is for"),
        (["--workload=ogbg", "--submission=lawa", "--engine=slurm"], "say how many --gpus"),
        (["--workload=ogbg", "--submission=lawa", "--engine=docker", "--harness_path=/h"], "HARNESS_COMMIT"),
        (["--workload=ogbg", "--submission=nope", "--engine=docker"], "--submission=nope is unknown"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(flags, words, tmp_path):
    result = command(*flags, f"--out={tmp_path / 'out'}", f"--data_dir={tmp_path / 'data'}")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert words in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(importlib.util.find_spec("algoperf") is not None, reason="algoperf is installed")
def test_without_the_harness_it_says_how_to_install_it(tmp_path):
    result = command("--workload=ogbg", "--submission=lawa", "--gpus=0", f"--out={tmp_path}", f"--data_dir={tmp_path}")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "algoperf is not installed: see docs/official.md" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_made_again(tmp_path):
    cell = replace(CRITEO, workload="mnist")
    folder = tmp_path / cell.name
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(result(cell=vars(cell))))
    (tmp_path / "of_another_command").mkdir()
    (tmp_path / "of_another_command" / "result.json").write_text(json.dumps(result()))
    done = command("--workload=mnist", "--submission=lawa", "--gpus=0", f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "1 of 1 passed" in done.stdout
    assert (tmp_path / "rehearsals.html").read_text().count("<tr>") == 3, "a head and all that is there"
    assert Path("submissions/pytorch/lawa/submission.py").exists()


def test_in_the_image_it_runs_again_over_mounted_folders(tmp_path):
    flags = ["--submission=lawa,ema", "--framework=pytorch,jax", "--engine=docker", "--dry_run", "--full_batch"]
    folders = [f"--data_dir={tmp_path / 'data'}", f"--out={tmp_path / 'out'}"]
    done = command("--all", *flags, *folders)
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout)
    assert {f"{tmp_path / 'data'}:/data", f"{tmp_path / 'out'}:/experiment_runs"} <= set(words)
    inside = words[words.index("scripts.rehearse") + 1 :]
    assert sorted(inside) == sorted([
        "--out=/experiment_runs", "--data_dir=/data", f"--workload={','.join(WORKLOADS)}", "--submission=lawa,ema",
        "--framework=pytorch,jax", "--full_batch",
    ])  # fmt: skip
    assert words[words.index("--gpus") + 1] == "all"
    on_cpu = command("--workload=ogbg", *flags, *folders, "--gpus=0").stdout
    assert ("--gpus all" in on_cpu, "--gpus=0" in on_cpu) == (False, True)
    assert list(tmp_path.iterdir()) == []


def test_on_slurm_it_is_one_job_that_is_requeued(tmp_path):
    flags = ["--workload=ogbg", "--submission=lawa", "--gpus=4", "--engine=slurm", "--sbatch_args=--partition=gpu"]
    done = command(*flags, f"--out={tmp_path}", "--dry_run")
    words = shlex.split(done.stdout)
    assert {"--requeue", "--gpus-per-node=4", "--partition=gpu"} <= set(words)
    inside = shlex.split(words[words.index("--wrap") + 1])
    assert inside[1:3] == ["-m", "scripts.rehearse"]
    assert sorted(inside[3:]) == sorted([*flags[:3], f"--out={tmp_path}"])


# Whole rehearsals, of a stand-in for the harness.


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    prepare(root)
    return root


@pytest.mark.parametrize("name", ["lawa", "ema_self"])
def test_a_run_is_killed_resumed_and_passes(name, root, tmp_path):
    flags = ["--workload=criteo1tb", f"--submission={name}", "--gpus=0", f"--data_dir={root}", f"--out={tmp_path}"]
    done = command(*flags, STAND_IN)
    assert done.returncode == 0, done.stdout + done.stderr + (next(tmp_path.glob("*/log.txt"))).read_text()[-2000:]
    (path,) = tmp_path.glob("*/result.json")
    found = json.loads(path.read_text())
    assert [check["passed"] for check in found["checks"]] == [True] * 8
    assert not (path.parent / "runs").exists()
    assert found["checks"][-1]["says"] == "6 evaluations, criteo1tb_test"
    again = command(*flags, STAND_IN)
    assert again.returncode == 0
    assert "..." not in again.stdout


def test_one_that_is_asked_to_end_leaves_nothing_running(root, tmp_path):
    words = ["--workload=criteo1tb", "--submission=lawa", "--gpus=0", f"--data_dir={root}", f"--out={tmp_path}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.rehearse", *words, STAND_IN],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    watched = psutil.Process(process.pid)
    while not (family := watched.children(recursive=True)):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.terminate()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143
    assert said == "\nstopped: the same command goes on with the rehearsals that are missing\n"
    assert not [member for member in family if member.is_running()]


@pytest.mark.parametrize("said", ["", "OSError: [Errno 28] No space left on device"])
def test_a_run_that_a_full_disk_ended_is_one_line_and_leaves_nothing(said, root, tmp_path, monkeypatch):
    def run_out_of_space(command, environment, folder, record, *_):
        (folder / "log.txt").write_text(said)
        (record.folder / f"{UPDATED}_0.npy").touch()  # cut at once
        if not said:
            monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
        return 1

    monkeypatch.setattr(drive, "_run", run_out_of_space)
    harness = Path(STAND_IN.partition("=")[2])
    (tmp_path / "of_before").mkdir()
    for out in (tmp_path / "of_before", tmp_path / "new"):
        with pytest.raises(UsageError, match=r"^--out=.*: No space left on device$"):
            drive.rehearse(drive.Place(root, out, harness), CRITEO)
        assert list(tmp_path.rglob("*")) == [tmp_path / "of_before"]


@pytest.mark.parametrize("fits", [64, 1])
def test_a_full_batch_is_halved_until_the_devices_have_the_memory(fits, root, tmp_path, monkeypatch):
    tried = []

    def run(command, environment, folder, record, *_):
        """As a run of two ranks that ends without memory, or that fails otherwise where there is enough."""
        halvings = json.loads((folder / "stage_1.json").read_text())["size"]["halvings"]
        tried.append(256 >> halvings)
        record.event("batch size", batch=256 >> halvings, official=256)
        error = "torch.OutOfMemoryError: CUDA out of memory" if tried[-1] > fits else "ValueError: another"
        (folder / "log.txt").write_text(f"{error}\n torch.distributed.elastic.ChildFailedError: \n")
        return 1

    monkeypatch.setattr(drive, "_run", run)
    place = drive.Place(root, tmp_path, Path(STAND_IN.partition("=")[2]))
    found = drive.rehearse(place, replace(CRITEO, ranks=2, full_batch=True))
    smallest = max(fits, 2)  # one example for each rank
    assert tried == [batch for batch in (256, 128, 64, 32, 16, 8, 4, 2) if batch >= smallest]
    assert found["batch"] == tried[-1]
    assert f"batch {tried[-1]} of 256" in table.text([found])
    tried.clear()
    drive.rehearse(place, replace(CRITEO, ranks=2))
    assert tried == [256], "only an official batch is halved"


@pytest.mark.parametrize(
    ("framework", "given"), [("jax", {}), ("jax", {"JAX_COMPILATION_CACHE_DIR": "/mine"}), ("pytorch", {})]
)
def test_jax_compiles_little_on_a_cpu_and_once(framework, given, root, tmp_path, monkeypatch):
    parts = []

    def run(command, environment, folder, *_):
        parts.append({name: environment[name] for name in sorted(environment) if name.startswith("JAX_")})
        (folder / "compiled").mkdir(exist_ok=True)
        (folder / "log.txt").touch()
        return 0 if len(parts) == 2 else drive.KILLED

    for name in [name for name in os.environ if name.startswith("JAX_")]:
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(drive, "_run", run)
    place = drive.Place(root, tmp_path, Path(STAND_IN.partition("=")[2]))
    cell = replace(CRITEO, framework=framework)
    drive.rehearse(place, cell)
    folder = tmp_path / cell.name / "compiled"
    expected = {"JAX_PLATFORMS": "cpu", **frameworks.soon_compiled(folder), **given} if framework == "jax" else {}
    assert parts == [expected] * 2
    assert not folder.exists()


def test_results_that_cannot_be_written_are_one_line(root, tmp_path):
    (tmp_path / "file").touch()
    flags = ["--workload=criteo1tb", "--submission=lawa", "--gpus=0", f"--data_dir={root}", STAND_IN]
    done = command(*flags, f"--out={tmp_path / 'file' / 'out'}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "Not a directory" in done.stderr


OWN = '''"""A submission of somebody else."""
import torch

from submissions.pytorch.nadamw.submission import data_selection, get_batch_size


def init_optimizer_state(workload, model_params, model_state, hyperparameters, rng):
    return {"optimizer": torch.optim.SGD(model_params.parameters(), lr=1e-4)}


def update_params(workload, current_param_container, batch, optimizer_state, **_):
    model = current_param_container
    if WORKS:
        loss = workload.loss_fn(batch["targets"], model(batch["inputs"])[:, 0])["summed"]
        model.zero_grad()
        loss.backward()
        optimizer_state["optimizer"].step()
    return optimizer_state, model, None
'''


@pytest.mark.parametrize("works", [True, False])
def test_a_submission_of_others_and_one_that_never_updates(works, root, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "submission.py").write_text(f"WORKS = {works}\n{OWN}")
    (tmp_path / "space.json").write_text('[{"learning_rate": 1e-3}]')
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    words = [
        sys.executable, "-m", "scripts.rehearse", "--workload=criteo1tb", "--gpus=0", STAND_IN, f"--data_dir={root}",
        "--submission_path=mine/submission.py", "--tuning_search_space=space.json", f"--out={tmp_path / 'out'}",
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == (not works), done.stdout + done.stderr
    says = "raw weights, as promised" if works else "NO updates: never changed the weights"
    assert says in done.stdout
