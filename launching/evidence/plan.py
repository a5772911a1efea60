"""Which runs the evidence has, as a YAML file says, and which of them come next.

The file has `defaults` and `parts`. A part has runs, and each of its fields may stand in the defaults, the part or the
run: see `Variant`. Which learning rate a run has may depend on earlier ones (docs/results/rules.md, section 8). So
nothing but the files of finished runs is ever asked.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from launching.evidence import records
from miniperf import search, workloads
from weight_averaging.errors import UsageError

SEARCH_EVALUATIONS = 20  # of a run that only tells how good a rate is
OTHER_RATE = "_other_rate"  # behind the name of a variant
WIDEST = 64.0  # the largest factor by which a search leaves the tuned rate


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Runs that differ in workload and seed alone.

    Attributes:
        part, what: of the rules, and in words.
        name: unlike all others of the part with the same workload.
        submission: of submissions/pytorch, one that does not average; or the path of the folder of a published one.
        workloads: `all`, or a list.
        seeds: so many, 0, 1, ...
        length, batch: times the workload's step_hint and batch size.
        hyperparameters: beside those of the first point in `search_spaces`.
        rates: `tuned`, or times the tuned learning rate: the grid that a search begins with.
        widen: whether the search goes on while the best is at an edge.
        framework: of the workload.
        learning_rate: the submission's own, of a published one; else that of the workload's tuned trial.
        point: number of the published point in the search space beside it, from 1 on; 0: it tunes itself.
        hopeless: by workload, the metric that the raw run of seed 0 must have by its end, or it gets no other seeds.
        best_of: times the learning rate, what is searched where it was hopeless: then `load` adds another variant.
        instead_of: name of the variant that this one is such another of.
        evaluations: in a run.
        every, test_every: as in miniperf/tracking/pytorch.py.
    """

    part: str
    name: str
    submission: str
    seeds: int
    search_spaces: str = ""
    workloads: Any = field(default="all", hash=False)
    what: str = ""
    length: float = 1
    batch: float = 1
    hyperparameters: dict[str, float] = field(default_factory=dict, hash=False)
    rates: Any = field(default="tuned", hash=False)
    widen: bool = True
    framework: str = "pytorch"
    learning_rate: float | None = None
    point: int = 0
    hopeless: dict[str, float] = field(default_factory=dict, hash=False)
    best_of: list[float] = field(default_factory=list, hash=False)
    instead_of: str = ""
    evaluations: int = 100
    every: dict[str, int] = field(default_factory=dict, hash=False)
    test_every: int = 10

    @property
    def names(self) -> list[str]:
        """Of its workloads."""
        return sorted(workloads.WORKLOADS) if self.workloads == "all" else list(self.workloads)

    def tuned_rate(self, workload: str) -> float:
        """The learning rate of the base optimizer at the workload's own length."""
        if self.learning_rate is not None:
            return self.learning_rate
        folder = Path(self.search_spaces)
        trials = json.loads((folder / "tuned_trials.json").read_text())
        trial = trials.get(self.submission, {}).get(workload, trials[workload])
        points = search.load(folder / f"{self.submission}.json", None)
        return float(points[trial - 1].learning_rate)

    def steps(self, workload: str) -> int:
        return max(1, round(self.length * workloads.make(workload).step_hint))

    @property
    def published(self) -> bool:
        """Whether it is a folder of somebody else's."""
        return "/" in self.submission


@dataclass(frozen=True)
class Run:
    """One run; `search`: only to find the rate."""

    variant: Variant
    workload: str
    seed: int
    rate: float
    search: bool = False
    at_edge: bool = False  # the rate is the best of a grid that ends with it

    @property
    def name(self) -> str:
        about = f"{self.variant.part} {self.variant.name} on {self.workload}, seed {self.seed}"
        return f"{about}, rate {self.rate:g}{' (search)' if self.search else ''}"

    def path(self, out: Path) -> Path:
        """Without its suffix: `.csv` and `.json` are there once it is finished, a folder until then."""
        home = out / self.variant.part / self.workload / self.variant.name
        return home / "search" / f"rate_{self.rate:g}" if self.search else home / f"seed_{self.seed}"

    def finished(self, out: Path) -> bool:
        return records.finished(self.path(out))


def load(path: Path) -> dict[str, list[Variant]]:
    """The variants by part. UsageError, in one line, for what cannot be in the file."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"--plan={path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or set(content) != {"defaults", "parts"}:
        raise UsageError(f"--plan={path} must have `defaults` and `parts`, and nothing else")
    known = {one.name for one in dataclasses.fields(Variant)}
    result: dict[str, list[Variant]] = {}
    for part, given in content["parts"].items():
        shared = {name: value for name, value in given.items() if name != "runs"}
        for run in given["runs"]:
            values = {**content["defaults"], **shared, **run, "part": str(part)}
            if unknown := sorted(set(values) - known):
                raise UsageError(
                    f"{path}, part {part}: unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}"
                )
            try:
                variant = Variant(**values)
            except TypeError as error:
                raise UsageError(f"{path}, part {part}: {error}") from None
            if not variant.published and not Path("submissions/pytorch", variant.submission, "submission.py").is_file():
                raise UsageError(f"{path}, part {part}: the submission {variant.submission!r} is unknown")
            result.setdefault(str(part), []).append(variant)
            if variant.best_of:
                other: dict[str, Any] = {"rates": variant.best_of, "widen": False, "best_of": []}
                name = f"{variant.name}{OTHER_RATE}"
                result[str(part)].append(dataclasses.replace(variant, name=name, instead_of=variant.name, **other))
    return result


def todo(
    variants: Sequence[Variant], out: Path, only: Sequence[str] | None = None, seeds: int | None = None
) -> Iterator[Run]:
    """The runs that are not finished and could begin now, first things first: seed by seed, workload by workload.

    Args:
        only: these workloads.
        seeds: no more than so many.
    """
    most = max((variant.seeds for variant in variants), default=0)
    given: set[Run] = set()
    for seed, workload in itertools.product(range(min(most, seeds or most)), sorted(workloads.WORKLOADS)):
        for variant in variants:
            if seed >= variant.seeds or (only and workload not in only):
                continue
            if workload not in variant.names:
                continue
            if not _wanted(variant, variants, workload, seed, out):
                continue
            for run in _ready(variant, workload, seed, out):
                if run not in given and not run.finished(out):
                    given.add(run)
                    yield run


def count(
    variants: Sequence[Variant], out: Path, only: Sequence[str] | None = None, seeds: int | None = None
) -> list[Run]:
    """All runs but those of searches, finished or not; their rates are not yet known (0)."""
    return [
        Run(variant, workload, seed, 0.0)
        for variant in variants
        for workload in variant.names
        for seed in range(min(variant.seeds, seeds or variant.seeds))
        if (not only or workload in only) and _wanted(variant, variants, workload, seed, out)
    ]


def hopeless(variant: Variant, workload: str, out: Path) -> bool:
    """Whether the raw run of seed 0 has ended worse than it must."""
    run = Run(variant, workload, 0, variant.tuned_rate(workload))
    if workload not in variant.hopeless or not run.finished(out):
        return False
    sign = 1 if workloads.make(workload).higher_is_better else -1  # type: ignore[attr-defined]
    return not sign * records.final(run.path(out)) >= sign * variant.hopeless[workload]


def _wanted(variant: Variant, among: Sequence[Variant], workload: str, seed: int, out: Path) -> bool:
    """Of a variant and the one instead of it: seed 0 of the first, then whichever is not hopeless."""
    others = [one for one in among if one.name == variant.instead_of]
    if variant.instead_of and not any(hopeless(other, workload, out) for other in others):
        return False
    return seed == 0 or not hopeless(variant, workload, out)


def _ready(variant: Variant, workload: str, seed: int, out: Path) -> list[Run]:
    """The run itself, or those of the search that must be finished before."""
    tuned = variant.tuned_rate(workload)
    if variant.rates == "tuned":
        return [Run(variant, workload, seed, tuned)]
    grid = {float(factor) for factor in variant.rates}
    while True:
        searched = {factor: Run(variant, workload, 0, _rounded(factor * tuned), search=True) for factor in sorted(grid)}
        missing = [run for run in searched.values() if not run.finished(out)]
        if missing:
            return missing
        lower = not workloads.make(workload).higher_is_better  # type: ignore[attr-defined]
        best = best_rate({factor: records.final(run.path(out)) for factor, run in searched.items()}, lower)
        wider = {min(grid): best / 2, max(grid): best * 2}.get(best)
        if not variant.widen or wider is None or not 1 / WIDEST <= wider <= WIDEST:
            return [Run(variant, workload, seed, searched[best].rate, at_edge=wider is not None)]
        grid.add(wider)


def best_rate(finals: dict[float, float], lower: bool) -> float:
    """The factor with the best final metric; of equals the smallest. What is not finite is worst."""
    sign = 1.0 if lower else -1.0
    return min(sorted(finals), key=lambda factor: sign * finals[factor] if math.isfinite(finals[factor]) else math.inf)


def _rounded(rate: float) -> float:
    return float(f"{rate:.6g}")
