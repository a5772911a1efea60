"""Comparisons: the paper's experiments as small YAML files, for a runner to run and scripts/report.py to draw.

A comparison says which submissions train on which workloads with which seeds and hyperparameters:

    title: Steps to the validation target
    paper: Fig. 1 and 2, Table 1         # optional: what of the paper it repeats
    question: How much sooner does averaging reach the target?
    submissions: [nadamw, lawa, ema]     # folders of submissions/pytorch; the first is the baseline
    workloads: all                       # or a list of names
    seeds: 3                             # 0, 1, 2; each a study_<seed> of the logs
    search_spaces: tuning_search_spaces/miniperf   # <submission>.json: the points to start from
    grid:                                # optional: per submission, values multiplied out over each of those points;
      lawa: {averaging_window: [5, 20], averaging_horizon: [.01, .1]}   # null leaves a hyperparameter out
    trials: all                          # optional: every point for each workload, rather than its tuned one, or
                                         # neighbours: those before and after the tuned one too
    median_of: 5                         # optional: evaluations in the running median of which crossings are read; odd
    offline: true                        # optional: the averages are made of snapshots of the runs that they average
    figures:
      - {name: fig1, kind: curves}       # see `KINDS`

Trial N of a run is point N of `Comparison.search_space(submission)`: hparams.json in the logs tells the points apart.
"""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from analysis.measures import crossing
from weight_averaging.errors import UsageError

# The options of each kind of figure, with their defaults; None: must be given.
KINDS: dict[str, dict[str, Any]] = {
    "curves": {"unit": "steps"},  # learning curves, a line for each point of the grid
    "speedup": {"unit": "steps"},  # ratio of time or steps to target to the baseline's
    "hours": {},  # table: hours to train the suite to target
    "best": {"which": "best"},  # table: best validation metric, or the final one
    "sweep": {"x": None, "y": "best"},  # y (best, steps, seconds) against the hyperparameter x
    "shorter": {},  # the long run and its averages as curves, against the ends of runs with shorter schedules
    # The next three look at the first share `until` of each run's schedule. y may also be gain: how much better the
    # best value is than that of the baseline's run of the same seed and hyperparameters.
    # y against the share of training that the average covers (with a parabola), or against the updates; `line`: a line
    # for each window or decay (part), or for each value of another hyperparameter
    "horizon": {"y": "steps", "until": 1.0, "line": "part", "x": "share"},
    "heatmap": {"y": "steps", "until": 1.0},  # y over interval and window or decay
    # table: the best share for each workload, with its interval
    "optima": {"y": "steps", "until": 1.0, "line": "part"},
    "data": {"until": 0.5},  # CSV: a row per run, what it reached in all and by that share
    # (or table) the lead on the baseline along the way against the share, over all workloads
    "leads": {"show": "figure"},
}
_Y = ("best", "steps", "seconds")
_CHOICES: dict[tuple[str, str], tuple[str, ...]] = {
    ("speedup", "unit"): ("steps", "seconds"),
    ("curves", "unit"): ("steps", "seconds"),
    ("best", "which"): ("best", "final"),
    ("sweep", "y"): _Y,
    ("horizon", "y"): (*_Y, "gain"),
    ("horizon", "x"): ("share", "updates"),
    ("heatmap", "y"): (*_Y, "gain"),
    ("optima", "y"): (*_Y, "gain"),
    ("leads", "show"): ("figure", "table"),
}
_NEEDED = ("title", "question", "submissions", "workloads", "seeds", "search_spaces", "figures")
_OPTIONAL = ("paper", "grid", "trials", "offline", "median_of")
# Submissions whose runs are those of another one, here after them, but for the average.
_AVERAGED = {
    "lawa": "nadamw", "ema": "nadamw", "ema_growing": "nadamw", "ema_growing_no_decay": "nadamw_no_decay",
    "ema_growing_inverse_sqrt": "nadamw_inverse_sqrt",
    "ema_follows_rate": "nadamw", "adamw_ema_growing": "adamw", "soap_ema_growing": "soap",
    "muon_lawa": "muon", "muon_ema_growing": "muon",
    "adamw_lawa": "adamw", "adamw_ema": "adamw",
    "ademamix_lawa": "ademamix", "ademamix_ema": "ademamix", "soap_lawa": "soap", "soap_ema": "soap",
    "shampoo_lawa": "shampoo", "shampoo_ema": "shampoo",
    "lawa_no_decay": "nadamw_no_decay", "ema_no_decay": "nadamw_no_decay", "merge_no_decay": "nadamw_no_decay",
    "lawa_wsd": "nadamw_wsd", "ema_wsd": "nadamw_wsd",
}  # fmt: skip
# Averages that are made of snapshots only: no submission, and the search space is that of what they average.
MERGES = ("merge_no_decay",)


def base_of(submission: str) -> str:
    """What a submission averages; itself if it averages nothing."""
    return _AVERAGED.get(submission, submission)


@dataclass(frozen=True)
class Comparison:
    """One experiment of the paper. `workloads` is None for all."""

    name: str
    title: str
    paper: str
    question: str
    submissions: tuple[str, ...]
    workloads: tuple[str, ...] | None
    seeds: int
    search_spaces: Path
    grid: dict[str, dict[str, list[Any]]]
    which_trials: str  # tuned, neighbours or all
    figures: tuple[dict[str, Any], ...]
    offline: bool = False
    median_of: int = crossing.MEDIAN_OF

    @property
    def baseline(self) -> str:
        return self.submissions[0]

    def averaged(self, submission: str) -> str | None:
        """The submission whose snapshots are averaged offline for this one; None: it is trained."""
        return _AVERAGED.get(submission) if self.offline else None

    def points(self, submission: str) -> list[dict[str, Any]]:
        """The points of the submission's search space, which the grid multiplies out.

        Raises:
            UsageError: the search space cannot be read, or is no list of points.
        """
        path = self.search_spaces / f"{_AVERAGED[submission] if submission in MERGES else submission}.json"
        try:
            points = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise UsageError(f"comparison {self.name}: cannot read the search space {path}: {error}") from None
        if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
            raise UsageError(
                f"comparison {self.name}: {path} must be a list of points, since the grid multiplies them out"
            )
        return points

    def search_space(self, submission: str) -> list[dict[str, Any]]:
        """The points of a submission, in the order of its trials: ready to be written as a tuning search space.

        Raises:
            UsageError: as `points`.
        """
        grid = self.grid.get(submission, {})
        varied = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
        merged = [{**point, **values} for point in self.points(submission) for values in varied]
        return [{name: value for name, value in point.items() if value is not None} for point in merged]

    def trials(self, submission: str, tuned: int) -> list[int]:
        """The trials to run on a workload whose tuned one is number `tuned` of the search space, counted from 1."""
        total = len(self.search_space(submission))
        points = len(self.points(submission))
        reach = {"tuned": 0, "neighbours": 1, "all": points}[self.which_trials]
        each = total // points
        first, last = max(1, tuned - reach), min(points, tuned + reach)
        return list(range((first - 1) * each + 1, last * each + 1))

    def source(self, submission: str, trial: int) -> int:
        """The trial, of what is `averaged`, whose snapshots an offline trial averages: the same but for the averaging.

        Raises:
            UsageError: there is none.
        """
        point = self.search_space(submission)[trial - 1]
        trained = {name: value for name, value in point.items() if not name.startswith("averaging_")}
        base = _AVERAGED[submission]
        space = self.search_space(base)
        if trained not in space:
            raise UsageError(f"comparison {self.name}: no point of {base} is point {trial} of {submission}")
        return space.index(trained) + 1


def load(path: str | Path) -> Comparison:
    """Read a comparison. UsageError in one line for anything wrong with the file."""
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UsageError(f"--comparison={path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    try:
        return _checked(path.stem, content)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _checked(name: str, content: Any) -> Comparison:
    if not isinstance(content, dict):
        raise UsageError("must be a mapping of fields")
    if missing := [field for field in _NEEDED if field not in content]:
        raise UsageError(f"the field {', '.join(missing)} is missing")
    if unknown := [str(field) for field in content if field not in (*_NEEDED, *_OPTIONAL)]:
        raise UsageError(f"unknown field {', '.join(unknown)}; there are {', '.join((*_NEEDED, *_OPTIONAL))}")
    for field in ("title", "paper", "question", "search_spaces"):
        if not isinstance(content.get(field, ""), str):
            raise UsageError(f"{field} must be text, not {content[field]!r}")
    submissions = _names("submissions", content["submissions"])
    workloads = None if content["workloads"] == "all" else _names("workloads", content["workloads"], " or `all`")
    seeds = content["seeds"]
    if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
        raise UsageError(f"seeds must be a whole number >= 1, not {seeds!r}")
    grid = _grid(content.get("grid") or {}, submissions)
    if content.get("trials", "all") not in ("all", "neighbours"):
        raise UsageError(f"trials must be all or neighbours, or left out, not {content['trials']!r}")
    offline = content.get("offline", False)
    if not isinstance(offline, bool):
        raise UsageError(f"offline must be true or false, not {offline!r}")
    median_of = content.get("median_of", crossing.MEDIAN_OF)
    if not isinstance(median_of, int) or isinstance(median_of, bool) or median_of < 1 or median_of % 2 == 0:
        raise UsageError(f"median_of must be an odd number of evaluations, not {median_of!r}")
    for submission in submissions:
        if offline and base_of(submission) not in submissions:
            raise UsageError(
                f"offline: {submission} averages runs of {_AVERAGED[submission]}: name it among the submissions"
            )
        if not offline and submission in MERGES:
            raise UsageError(f"{submission} is made of snapshots: say offline: true")
    if _AVERAGED.get(submissions[0]) and offline:
        raise UsageError(f"offline: the baseline, named first, must be trained; {submissions[0]} is an average")
    return Comparison(
        name=name,
        title=content["title"],
        paper=content.get("paper", ""),
        question=content["question"],
        submissions=submissions,
        workloads=workloads,
        seeds=seeds,
        search_spaces=Path(content["search_spaces"]),
        grid=grid,
        which_trials=content.get("trials", "tuned"),
        figures=_figures(content["figures"]),
        offline=offline,
        median_of=median_of,
    )


def _names(field: str, value: Any, otherwise: str = "") -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise UsageError(f"{field} must be a list of names{otherwise}, not {value!r}")
    if twice := sorted({name for name in value if value.count(name) > 1}):
        raise UsageError(f"{field} names {', '.join(twice)} twice")
    return tuple(value)


def _grid(grid: Any, submissions: tuple[str, ...]) -> dict[str, dict[str, list[Any]]]:
    if not isinstance(grid, dict):
        raise UsageError(f"grid must map submissions to hyperparameters, not {grid!r}")
    for submission, values in grid.items():
        if submission not in submissions:
            raise UsageError(f"grid: {submission!r} is not among the submissions {', '.join(submissions)}")
        if not isinstance(values, dict):
            raise UsageError(f"grid: {submission} must map hyperparameters to lists, not {values!r}")
        for name, options in values.items():
            if not isinstance(options, list) or not options:
                raise UsageError(f"grid: {submission}: {name} must be a list of values, not {options!r}")
    return grid


def _figures(figures: Any) -> tuple[dict[str, Any], ...]:
    if not isinstance(figures, list) or not figures:
        raise UsageError(f"figures must be a list, not {figures!r}")
    checked = []
    for figure in figures:
        if not isinstance(figure, dict) or not isinstance(figure.get("name"), str):
            raise UsageError(f"figures: each needs a name and a kind, not {figure!r}")
        name, kind = figure["name"], figure.get("kind")
        if kind not in KINDS:
            raise UsageError(f"figures: {name}: kind {kind!r} is unknown; choose from {', '.join(KINDS)}")
        options = {key: value for key, value in figure.items() if key not in ("name", "kind")}
        if unknown := [str(key) for key in options if key not in KINDS[kind]]:
            raise UsageError(f"figures: {name}: {kind} takes no {', '.join(unknown)}")
        full = {**KINDS[kind], **options}
        for key, value in full.items():
            if value is None:
                raise UsageError(f"figures: {name}: {kind} needs {key}")
            if value not in (choices := _CHOICES.get((kind, key), (value,))):
                raise UsageError(f"figures: {name}: {key} must be one of {', '.join(choices)}, not {value!r}")
            if key == "until" and not (isinstance(value, int | float) and 0 < value <= 1):
                raise UsageError(f"figures: {name}: until must be a share of training in (0, 1], not {value!r}")
        checked.append({"name": name, "kind": kind, **full})
    if len({figure["name"] for figure in checked}) < len(checked):
        raise UsageError("figures: two have the same name")
    return tuple(checked)
