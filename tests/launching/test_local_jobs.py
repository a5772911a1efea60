"""The pool of local processes: who begins when, what fails with what, and that nothing is left at work."""

import contextlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from launching import local_jobs
from launching.local_jobs import Job, Pool
from tests.support.killing import in_a_process


@dataclass(eq=False, kw_only=True)
class Python(Job):
    """Runs `code`, and leaves a file behind at the end of it."""

    label: str
    code: str = ""

    @property
    def name(self) -> str:
        return self.label

    @property
    def log(self) -> Path:
        return self.experiment_dir / "logs" / f"{self.label}.txt"

    @property
    def marker(self) -> Path:
        return self.experiment_dir / self.label

    def command(self) -> list[str]:
        code = f"{self.code}\nprint('said')\nopen({str(self.marker)!r}, 'w').write(os.environ['SLOT'])"
        return [sys.executable, "-c", f"import os, sys, time\n{code}"]

    def finished(self) -> bool:
        return self.marker.exists()


def job(folder: Path, label: str, code: str = "", source: Job | None = None) -> Python:
    common = {"framework": "pytorch", "submission": "lawa", "workload": "mini_wmt", "seed": 0, "trials": [1]}
    return Python(label=label, code=code, source=source, search_space=None, experiment_dir=folder, **common)


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(local_jobs, "POLL_SECONDS", 0.02)


def ends(jobs: list[Python], at_a_time: int) -> list[tuple[str, bool, int, int]]:
    """Of each job that ended: its name, whether well, how many were running and over then."""
    said = []
    with Pool(jobs, at_a_time, lambda slot: {"SLOT": str(slot)}) as pool:
        while pool.active:
            pool.begin()
            assert len(pool.running) <= at_a_time
            said += [(job.name, well, len(pool.running), pool.over) for job, well in pool.ended()]
    return said


def test_one_after_the_other_in_their_order(tmp_path):
    jobs = [job(tmp_path, label) for label in "abc"]
    assert ends(jobs, 1) == [("a", True, 0, 1), ("b", True, 0, 2), ("c", True, 0, 3)]
    assert [one.marker.read_text() for one in jobs] == ["0"] * 3
    assert ends(jobs, 1)  # begun again, they add to their logs
    assert jobs[0].log.read_text() == "said\n" * 2


def test_a_job_waits_for_its_source_and_lets_others_pass(tmp_path):
    slow = job(tmp_path, "slow", "time.sleep(0.5)")
    jobs = [slow, job(tmp_path, "of_slow", source=slow), job(tmp_path, "other")]
    assert [name for name, *_ in ends(jobs, 2)] == ["other", "slow", "of_slow"]


def test_what_needs_a_job_that_failed_never_begins(tmp_path):
    bad = job(tmp_path, "bad", "sys.exit(3)")
    of_bad, other = job(tmp_path, "of_bad", source=bad), job(tmp_path, "other")
    assert ends([bad, of_bad, other], 1) == [("bad", False, 0, 2), ("other", True, 0, 3)]
    assert not of_bad.log.exists()


def test_nothing_is_left_at_work(tmp_path):
    jobs = [job(tmp_path, label, "time.sleep(600)") for label in "ab"]
    with contextlib.suppress(KeyboardInterrupt), Pool(jobs, 2, lambda slot: {"SLOT": ""}) as pool:
        pool.begin()
        processes = [process for _, process in pool._processes.values()]
        assert all(process.poll() is None for process in processes)
        raise KeyboardInterrupt
    assert [process.returncode for process in processes] == [-15, -15]


@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells a process that its parent is gone")
def test_nothing_is_left_at_work_after_a_kill(tmp_path):
    """Or the same command again would begin a second process in the same folder, beside the one that trains on."""
    tell = f"file = open({str(tmp_path)!r} + f'/pid_{{os.getpid()}}', 'w')\ntime.sleep(600)"
    jobs = [job(tmp_path, label, tell) for label in "ab"]

    def start() -> None:
        with Pool(jobs, 2, lambda slot: {"SLOT": ""}) as pool:
            while pool.active:
                pool.begin()
                list(pool.ended())

    process = in_a_process(start)
    while len(told := list(tmp_path.glob("pid_*"))) < 2:
        assert process.is_alive()
        time.sleep(0.02)
    begun = [psutil.Process(int(path.name.removeprefix("pid_"))) for path in told]
    process.kill()
    process.join()
    assert not psutil.wait_procs(begun, timeout=30)[1]
