"""Reading run logs in the official form: miniperf's, the official harness's and the published ones alike.

A run is a folder `<submission>[/study_K]/<workload>_<framework>/trial_N` with an eval_measurements.csv, and beside it
hparams.json, meta_data_K.json and flags_K.json where the harness wrote them. Logs come from folders or tar archives.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pandas as pd

from analysis.reading.evaluations import KEPT, Table
from analysis.reading.files import MEASUREMENTS, Skipped, files
from weight_averaging.errors import UsageError

_TRIAL = re.compile(r"trial_(\d+)")
_WORKLOAD = re.compile(r"(.+)_(pytorch|jax)")
_STUDY = re.compile(r"study_(\d+)")
_ALMOST_STUDY = re.compile(r"study[_-]?\d+.*")  # a copy, say, which would pass for a submission


@dataclass(frozen=True)
class Logs:
    """What was read.

    Attributes:
        runs: one row per trial, numbered 0, 1, ...: submission, study, workload, framework, trial, and folder (where it
            came from). The dicts hparams, meta and flags are empty where there is no such file.
        evaluations: one row per evaluation, in the order of training: `run` (a row of `runs`) and the columns of the
            csv files. A value is NaN where a file has no such column. Among them are global_step (completed updates)
            and score (seconds of submission time).
        columns: for each run the columns that its file has.
        skipped: what was left out, and what counts though it looks odd (reasons in `KEPT`), one row each: path, reason.
    """

    runs: pd.DataFrame
    evaluations: pd.DataFrame
    columns: list[frozenset[str]]
    skipped: pd.DataFrame

    def select(self, keep: pd.Series) -> "Logs":
        """The runs where `keep` (bool, one per run) holds, renumbered."""
        chosen = self.runs.index[keep]
        number = pd.Series(range(len(chosen)), index=chosen)
        rows = self.evaluations[self.evaluations["run"].isin(chosen)]
        return Logs(
            self.runs.loc[chosen].reset_index(drop=True),
            rows.assign(run=rows["run"].map(number)).reset_index(drop=True),
            [self.columns[i] for i in chosen],
            self.skipped,
        )

    def only(self, submissions: Sequence[str] | None) -> "Logs":
        """The runs of these submissions, or all for None. UsageError for one without a run."""
        if submissions is None:
            return self
        there = set(self.runs["submission"])
        if unknown := [name for name in submissions if name not in there]:
            raise UsageError(f"--submissions: no run of {', '.join(unknown)}; there are {', '.join(sorted(there))}")
        return self.select(self.runs["submission"].isin(submissions))


class _Place(NamedTuple):
    submission: str
    study: int
    workload: str
    framework: str
    trial: int
    home: str  # the submission's folder


def read(sources: str | Path | Sequence[str | Path], framework: str | None = None) -> Logs:
    """All runs of one or several folders or tar archives, or those in one framework.

    What is left out is counted and named in `skipped`:

    - trials without an eval_measurements.csv, files elsewhere than in a trial's folder, links that lead nowhere;
    - files without global_step or without an evaluation;
    - half-written lines: too few fields, or no newline at the end and a last number that decides something;
    - evaluations that a resumed run did again, or that have no step or no time.

    Raises:
        UsageError: a source does not exist, is no archive, or holds no run. Two submissions or runs have one name. Runs
            of one workload are in two frameworks.
    """
    sources = [sources] if isinstance(sources, str | Path) else list(sources)
    table = Table()
    skipped: Skipped = []
    folders: dict[PurePosixPath, dict[str, str]] = {}
    for source in sources:
        found = list(files(Path(source), skipped))
        if not any(path.name == MEASUREMENTS for path, _ in found):
            expected = f"<submission>/study_K/<workload>_<framework>/trial_N/{MEASUREMENTS}"
            raise UsageError(f"{source} holds no run logs: expected files {expected}")
        for path, text in found:
            folders.setdefault(path.parent, {})[path.name] = text
    rows: list[dict] = []
    for folder, texts in folders.items():
        if isinstance(place := _place(folder), str):
            skipped += [(str(folder / name), place) for name in texts if name == MEASUREMENTS]
        elif framework not in (None, place.framework):
            continue
        elif MEASUREMENTS not in texts:
            skipped.append((str(folder), f"a trial without {MEASUREMENTS}"))
        else:
            count, complaints = table.add(len(rows), texts[MEASUREMENTS])
            skipped += [(str(folder / MEASUREMENTS), reason) for reason in complaints]
            if count:
                extra = {"folder": str(folder), **{kind: _latest(texts, kind) for kind in ("hparams", "meta", "flags")}}
                rows.append({**place._asdict(), **extra})
    if not rows and framework is not None and not skipped:
        raise UsageError(f"no run in {framework} below {', '.join(map(str, sources))}")
    if not rows:
        raise UsageError(f"no readable run below {', '.join(map(str, sources))}; the first skipped: {skipped[0]}")
    runs = pd.DataFrame(rows)
    _check_names(runs)
    evaluations, more = table.evaluations(runs["folder"])
    left = runs.index.isin(evaluations["run"])
    skipped += more + [(folder, "no evaluation left in it") for folder in runs["folder"][~left]]
    if not left.any():
        raise UsageError(f"no usable evaluation below {', '.join(map(str, sources))}; the first skipped: {skipped[0]}")
    table_of_skipped = pd.DataFrame(skipped, columns=["path", "reason"])
    whole = Logs(runs.drop(columns="home"), evaluations, table.columns, table_of_skipped)
    return whole if left.all() else whole.select(pd.Series(left))


def summary_of_skipped(logs: Logs, examples: int = 1) -> list[str]:
    """One line per reason: how often, and the first places."""
    lines = []
    for reason, paths in logs.skipped.groupby("reason", sort=False)["path"]:
        more = ", ..." if len(paths) > examples else ""
        done = "kept" if reason in KEPT else "skipped"
        lines.append(f"{done} {len(paths)} x {reason}: {', '.join(paths[:examples])}{more}")
    return lines


def _place(folder: PurePosixPath) -> _Place | str:
    """What the folder's path says of the run in it, or why it is none."""
    trial = _TRIAL.fullmatch(folder.name)
    workload = _WORKLOAD.fullmatch(folder.parent.name)
    if not trial or not workload:
        return "not in a folder <submission>/<workload>_<framework>/trial_N"
    above = folder.parent.parent
    study = _STUDY.fullmatch(above.name)
    if not study and _ALMOST_STUDY.fullmatch(above.name):
        return f"in {above.name}, which is no study_<number>: rename it if it counts"
    home = above.parent if study else above
    number = int(study[1]) if study else 0
    return _Place(home.name or "unnamed", number, workload[1], workload[2], int(trial[1]), str(home))


def _latest(texts: dict[str, str], kind: str) -> dict:
    """The dict in hparams.json, or in the meta_data_K.json or flags_K.json of the last resumption."""
    prefix = {"hparams": "hparams.json", "meta": "meta_data_", "flags": "flags_"}[kind]
    names = sorted((name for name in texts if name.startswith(prefix)), key=lambda name: (len(name), name))
    try:
        content = json.loads(texts[names[-1]]) if names else {}
    except json.JSONDecodeError:
        return {}
    return content if isinstance(content, dict) else {}


def _check_names(runs: pd.DataFrame) -> None:
    homes = runs.groupby("submission")["home"].unique()
    for name, places in homes.items():
        if len(places) > 1:
            raise UsageError(
                f"two submissions are named {name!r}: {places[0]} and {places[1]}; rename a folder or read one alone"
            )
    for (name, workload), frameworks in runs.groupby(["submission", "workload"])["framework"]:
        if frameworks.nunique() > 1:
            few, many = frameworks.value_counts().index[[-1, 0]]
            place = runs.loc[frameworks.index[frameworks == few][0], "folder"]
            raise UsageError(
                f"{name!r} has runs of {workload} in two frameworks, {many} ({(frameworks == many).sum()}) and "
                f"{few} ({(frameworks == few).sum()}: {place}); move those that do not count elsewhere"
            )
    twice = runs[runs.duplicated(["submission", "study", "workload", "trial"], keep=False)]
    if len(twice):
        raise UsageError(f"two logs of one run: {twice['folder'].iloc[0]} and {twice['folder'].iloc[1]}; remove one")
