"""Which runs a suite has: submissions x workloads x seeds, or what a comparison asks for."""

import itertools
import json
import math
from collections import namedtuple
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from analysis.comparisons.comparison import MERGES, Comparison, base_of
from launching import own_submissions
from launching.suite_jobs import Averaging, SuiteJob, Training
from miniperf import submission, workloads
from submissions.recipe.offline import average_of
from weight_averaging.atomic_file import replacing
from weight_averaging.averages import SnapshotError
from weight_averaging.errors import UsageError


@dataclass(frozen=True)
class _SearchSpace:
    """The hyperparameters with which a submission runs.

    Attributes:
        file: with the points; None: it tunes itself.
        points: of a comparison; none without one.
        trials: of the points, from 1, by workload.
    """

    submission: str
    file: Path | None
    points: list[dict[str, Any]]
    trials: dict[str, list[int]]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Which runs there are.

    Attributes:
        framework: of submissions and workloads.
        seeds: runs of each, with the seeds 0, 1, ...
        search_spaces: folder with a <submission>.json each and tuned_trials.json.
        experiment_dir: root folder of the runs.
        evaluations: in a run, evenly spaced; None: 50, of short runs one every 10 updates.
        max_global_steps: updates in a run; None: the workload's step_hint.
        comparison: multiplies the points of the search spaces out.
    """

    framework: str
    submissions: Sequence[str]
    workloads: Sequence[str]
    seeds: int
    search_spaces: Path
    experiment_dir: Path
    evaluations: int | None = None
    max_global_steps: int | None = None
    comparison: Comparison | None = None

    def jobs(self) -> list[SuiteJob]:
        """All runs, seed by seed, each average after the run that it is of.

        UsageError for an unknown submission or workload, for hyperparameters that a submission cannot take, and where
        the folder of the runs is of another comparison.
        """
        spaces = self._search_spaces()
        trained = [space for space in spaces if self._averaged(space.submission) is None]
        averaged = [space for space in spaces if self._averaged(space.submission) is not None]
        result: list[SuiteJob] = []
        for seed, workload in itertools.product(range(self.seeds), self.workloads):
            runs = [
                self._training(space, workload, seed, trial) for space in trained for trial in space.trials[workload]
            ]
            result += runs
            for space in averaged:
                base = self._averaged(space.submission)
                result += self._averagings(space, [run for run in runs if run.submission == base])
        return result

    def _averaged(self, name: str) -> str | None:
        """The submission whose snapshots this one averages; None: it is trained."""
        return None if self.comparison is None else self.comparison.averaged(name)

    def _training(self, space: _SearchSpace, workload: str, seed: int, trial: int) -> Training:
        # Once its schedule is over, a run learns nothing more.
        share = space.points[trial - 1].get("schedule_fraction", 1.0) if space.points else 1.0
        steps = max(1, round(share * self._steps(workload)))
        return Training(
            framework=self.framework,
            submission=space.submission,
            workload=workload,
            seed=seed,
            trials=[trial],
            search_space=space.file,
            experiment_dir=self.experiment_dir,
            steps=steps,
            evaluate_every=max(1, steps // self.evaluations if self.evaluations else max(steps // 50, 10)),
        )

    def _averagings(self, space: _SearchSpace, sources: Sequence[Training]) -> list[Averaging]:
        """One job for each run that the submission averages; the run is told to keep the snapshots that it needs."""
        assert self.comparison is not None
        result = []
        for source in sources:
            step_hint, ready = self._step_hint(source.workload), []
            for trial in space.trials[source.workload]:
                if self.comparison.source(space.submission, trial) != source.trials[0]:
                    continue
                average = average_of(space.submission, SimpleNamespace(**space.points[trial - 1]), step_hint)
                interval = average.interval or 1
                try:
                    average.members(range(interval, source.steps + 1, interval), source.steps)
                except SnapshotError:
                    continue  # longer than the run
                ready.append(trial)
                source.snapshots_every = math.gcd(source.snapshots_every or 0, interval)
            if ready:
                result.append(
                    Averaging(
                        framework=source.framework,
                        submission=space.submission,
                        workload=source.workload,
                        seed=source.seed,
                        trials=ready,
                        search_space=space.file,
                        experiment_dir=self.experiment_dir,
                        source=source,
                        steps=source.steps,
                    )
                )
        return result

    def _search_spaces(self) -> list[_SearchSpace]:
        """Of each submission, checked. The points of a comparison are in files then, if all of them can be used."""
        for name in self.submissions:
            if self.comparison is None or name not in MERGES:
                self._path(name)
        for workload in self.workloads:
            workloads.module_of(workload, self.framework)
        path = self.search_spaces / "tuned_trials.json"
        try:
            tuned = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise UsageError(f"--search_spaces={self.search_spaces}: cannot read {path.name}: {error}") from None
        if self.comparison is None:
            self._check_own_points()
        if untuned := [workload for workload in self.workloads if workload not in tuned]:
            raise UsageError(f"{path} has no trial for {', '.join(untuned)}; see scripts.calibrate")
        # Those of the base optimizer, where it has its own.
        by_name = {name: tuned | tuned.get(base_of(name), {}) for name in self.submissions}
        if self.comparison is None:
            return [self._as_it_is(name, by_name[name]) for name in self.submissions]
        spaces = [self._multiplied_out(self.comparison, name, by_name[name]) for name in self.submissions]
        for space in spaces:
            _write(space)
        return spaces

    def _check_own_points(self) -> None:
        """UsageError for a submission without a search space that cannot tune itself."""
        for name in self.submissions:
            if self._file(name).is_file():
                continue
            try:
                self._load(name).check_hyperparameters(None, 1000)  # of whatever length
            except ValueError as error:
                missing = f"--search_spaces={self.search_spaces} has no {name}.json, and without one"
                raise UsageError(f"{missing}: {error}") from None

    def _as_it_is(self, name: str, tuned: dict[str, int]) -> _SearchSpace:
        file = self._file(name)
        if not file.is_file():
            return _SearchSpace(name, None, [], {workload: [1] for workload in self.workloads})
        return _SearchSpace(name, file, [], {workload: [tuned[workload]] for workload in self.workloads})

    def _multiplied_out(self, comparison: Comparison, name: str, tuned: dict[str, int]) -> _SearchSpace:
        points = comparison.search_space(name)
        check = self._load(name).check_hyperparameters if name not in MERGES else partial(average_of, name)
        for workload, point in itertools.product(self.workloads, points):
            try:
                check(namedtuple("Hyperparameters", point)(**point), self._steps(workload))
            except ValueError as error:
                raise UsageError(f"comparison {comparison.name}: grid of {name}: {error}") from None
        trials = {workload: comparison.trials(name, tuned[workload]) for workload in self.workloads}
        return _SearchSpace(name, self.experiment_dir / "search_spaces" / f"{name}.json", points, trials)

    def _file(self, submission: str) -> Path:
        return self.search_spaces / f"{submission}.json"

    def _path(self, submission: str) -> Path:
        return own_submissions.path_of(submission, self.framework, "submissions")

    def _load(self, name: str) -> ModuleType:
        return submission.load(str(self._path(name)), self.framework)

    def _step_hint(self, workload: str) -> int:
        return workloads.make(workload, self.framework).step_hint

    def _steps(self, workload: str) -> int:
        return self.max_global_steps or self._step_hint(workload)


def _write(space: _SearchSpace) -> None:
    """The points of a comparison into their file. UsageError if it has other ones."""
    assert space.file is not None
    text = json.dumps(space.points, indent=2)
    if space.file.exists():
        if space.file.read_text() != text:
            raise UsageError(f"{space.file} is of another comparison: choose another --experiment_dir")
        return
    space.file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(space.file) as file:
        file.write(text.encode())
