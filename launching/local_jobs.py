"""Jobs on this machine: processes, several at a time, that end together when nobody waits for them any more."""

import abc
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Self, TypeVar

from miniperf import workloads
from miniperf.logs import evaluations_of
from miniperf.progress import summary
from weight_averaging.words import counted

POLL_SECONDS = 0.2
Kind = TypeVar("Kind", bound="Job")
_PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


def end_with_parent() -> None:
    """As the `preexec_fn` of a process: it gets SIGTERM when the one that began it is gone, by SIGKILL too. On Linux.

    Or it would train on, and the same command again would begin a second process in the same folder.
    """
    if _PRCTL is not None:
        _PRCTL(_PARENT_DEATH_SIGNAL, signal.SIGTERM)


@dataclass(eq=False, kw_only=True)
class Job(abc.ABC):
    """A run of one submission on one workload, as a process that can be stopped and begun again at any moment.

    Attributes:
        framework: of submission and workload.
        seed: of the run, and the number of its study.
        trials: points of the search space, from 1; one, unless they are averages of one run.
        search_space: None: the submission tunes itself.
        experiment_dir: root folder of the runs.
        source: the job that must be finished before.
    """

    framework: str
    submission: str
    workload: str
    seed: int
    trials: Sequence[int]
    search_space: Path | None
    experiment_dir: Path
    source: "Job | None" = None

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Unlike that of all others."""

    @property
    @abc.abstractmethod
    def log(self) -> Path:
        """The file to which the process adds what it says."""

    @abc.abstractmethod
    def command(self) -> list[str]:
        """What begins the process, or goes on where it was stopped."""

    @abc.abstractmethod
    def finished(self) -> bool:
        """Whether nothing is left to do."""

    def ready(self) -> bool:
        """Whether it can begin."""
        return self.source is None or self.source.finished()

    def folder(self, trial: int) -> Path:
        """Where the logs of a trial are."""
        study = self.experiment_dir / self.submission / f"study_{self.seed}"
        return study / f"{self.workload}_{self.framework}" / f"trial_{trial}"

    def result(self) -> str:
        """What came of it, in words."""
        if len(self.trials) > 1:
            return f"{counted(len(self.trials), 'average')} evaluated"
        workload = workloads.make(self.workload, self.framework)
        return summary(workload, evaluations_of(self.folder(self.trials[0])))


class Pool(Generic[Kind]):
    """Processes of jobs, so many at a time. Those still at work when the `with` block is left are ended.

        with Pool(jobs, 2, lambda slot: {}) as pool:
            while pool.active:
                pool.begin()
                for job, well in pool.ended():
                    print(job.name, well)

    Args:
        jobs: begun in this order, each once it is ready.
        environment: what the job in a slot, from 0, finds in its environment beside what is in this process's own.
    """

    def __init__(self, jobs: Sequence[Kind], at_a_time: int, environment: Callable[[int], dict[str, str]]) -> None:
        self._waiting = list(jobs)
        self._count, self._slots, self._environment = len(jobs), range(at_a_time), environment
        self._processes: dict[int, tuple[Kind, subprocess.Popen[bytes]]] = {}  # by slot

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """After Ctrl-C, of which a terminal has told the processes already, some are left."""
        processes = [process for _, process in self._processes.values()]
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()

    @property
    def running(self) -> list[Kind]:
        return [job for job, _ in self._processes.values()]

    @property
    def over(self) -> int:
        """How many jobs have ended or will not begin."""
        return self._count - len(self._waiting) - len(self._processes)

    @property
    def active(self) -> bool:
        """Whether there are jobs left, running or waiting."""
        return bool(self._waiting or self._processes)

    def begin(self) -> list[Kind]:
        """Begin the jobs that are ready and for which there is a slot."""
        begun = []
        for slot in self._slots:
            if slot in self._processes:
                continue
            job = next((job for job in self._waiting if job.ready()), None)
            if job is None:
                break
            job.log.parent.mkdir(parents=True, exist_ok=True)
            with open(job.log, "a") as log:
                environment = {**os.environ, **self._environment(slot)}
                process = subprocess.Popen(
                    job.command(), stdout=log, stderr=subprocess.STDOUT, env=environment, preexec_fn=end_with_parent
                )
            self._processes[slot] = job, process
            self._waiting.remove(job)
            begun.append(job)
        return begun

    def ended(self) -> Iterator[tuple[Kind, bool]]:
        """Wait a moment. The jobs that have ended since, and whether well; what needs one that failed never begins."""
        time.sleep(POLL_SECONDS)
        for slot, (job, process) in list(self._processes.items()):
            code = process.poll()
            if code is None:
                continue
            del self._processes[slot]
            if code:
                self._waiting = [other for other in self._waiting if other.source is not job]
            yield job, code == 0
