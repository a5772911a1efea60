"""Reading run logs in the official form: miniperf's, the official harness's and the published ones alike.

A run is a folder `<submission>[/study_K]/<workload>_<framework>/trial_N` with an eval_measurements.csv, and beside it
hparams.json, meta_data_K.json and flags_K.json where the harness wrote them. Logs come from folders or tar archives.
"""

import io
import json
import lzma
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pandas as pd

from analysis.errors import UsageError

MEASUREMENTS = "eval_measurements.csv"
_WANTED = re.compile(r"eval_measurements\.csv|hparams\.json|(meta_data|flags)_\d+\.json")
_TRIAL = re.compile(r"trial_(\d+)")
_WORKLOAD = re.compile(r"(.+)_(pytorch|jax)")
_STUDY = re.compile(r"study_(\d+)")
_ARCHIVE = re.compile(r"\.(tar|tar\.(xz|gz|bz2)|tgz|txz)$")


@dataclass(frozen=True)
class Logs:
    """What was read.

    Attributes:
        runs: one row per trial, numbered 0, 1, ...: submission, study, workload, framework, trial, folder (where it
            came from), and the dicts hparams, meta and flags, empty where there is no such file.
        evaluations: one row per evaluation, in the order of training: `run` (a row of `runs`), the columns of the
            csv files (NaN where a file has no such column), among them global_step (completed updates) and score
            (seconds of submission time).
        columns: for each run the columns that its file has.
        skipped: what was left out, one row each: path, reason.
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


def read(sources: str | Path | Sequence[str | Path]) -> Logs:
    """All runs of one or several folders or tar archives.

    Left out, counted and named in `skipped`: trials without an eval_measurements.csv, files elsewhere than in a
    trial's folder, files without global_step or without an evaluation, half-written lines (too few fields, or a last
    line that no newline ends: its last number may be cut), and evaluations that a resumed run did again.

    Raises:
        UsageError: a source does not exist, is no archive, or holds no run; two submissions or runs of one name.
    """
    sources = [sources] if isinstance(sources, str | Path) else list(sources)
    table, skipped = _Table(), []
    folders: dict[PurePosixPath, dict[str, str]] = {}
    for source in sources:
        files = list(_files(Path(source)))
        if not any(path.name == MEASUREMENTS for path, _ in files):
            expected = f"<submission>/study_K/<workload>_<framework>/trial_N/{MEASUREMENTS}"
            raise UsageError(f"{source} holds no run logs: expected files {expected}")
        for path, text in files:
            folders.setdefault(path.parent, {})[path.name] = text
    rows: list[dict] = []
    for folder, texts in folders.items():
        if (place := _place(folder)) is None:
            where = "not in a folder <submission>/<workload>_<framework>/trial_N"
            skipped += [(str(folder / name), where) for name in texts if name == MEASUREMENTS]
        elif MEASUREMENTS not in texts:
            skipped.append((str(folder), f"a trial without {MEASUREMENTS}"))
        else:
            count, complaints = table.add(len(rows), texts[MEASUREMENTS])
            skipped += [(str(folder / MEASUREMENTS), reason) for reason in complaints]
            if count:
                extra = {"folder": str(folder), **{kind: _latest(texts, kind) for kind in ("hparams", "meta", "flags")}}
                rows.append({**place._asdict(), **extra})
    if not rows:
        raise UsageError(f"no readable run below {', '.join(map(str, sources))}; the first skipped: {skipped[0]}")
    runs = pd.DataFrame(rows)
    _check_names(runs)
    evaluations, redone = table.evaluations(runs["folder"])
    return Logs(
        runs.drop(columns="home"), evaluations, table.columns,
        pd.DataFrame(skipped + redone, columns=["path", "reason"]),
    )  # fmt: skip


def summary_of_skipped(logs: Logs, examples: int = 1) -> list[str]:
    """One line per reason: how often, and the first places."""
    lines = []
    for reason, paths in logs.skipped.groupby("reason", sort=False)["path"]:
        more = ", ..." if len(paths) > examples else ""
        lines.append(f"skipped {len(paths)} x {reason}: {', '.join(paths[:examples])}{more}")
    return lines


def _files(source: Path) -> Iterator[tuple[PurePosixPath, str]]:
    """The log files below a folder or in an archive, each with its text."""
    if source.is_dir():
        for found in sorted(source.resolve().rglob("*")):
            if _WANTED.fullmatch(found.name) and found.is_file():
                yield PurePosixPath(found), found.read_text(errors="replace")
    elif source.is_file() and _ARCHIVE.search(source.name):
        try:
            with tarfile.open(source) as archive:
                for member in archive:
                    path = PurePosixPath(member.name)
                    if _WANTED.fullmatch(path.name) and (content := archive.extractfile(member)) is not None:
                        yield path, content.read().decode(errors="replace")
        except (tarfile.TarError, EOFError, OSError, lzma.LZMAError) as error:
            raise UsageError(f"{source} cannot be read as an archive: {error}") from None
    else:
        problem = "is neither a folder nor a tar archive" if source.exists() else "does not exist"
        raise UsageError(f"{source} {problem}; name a folder of run logs or a .tar.xz of one")


def _place(folder: PurePosixPath) -> _Place | None:
    trial = _TRIAL.fullmatch(folder.name)
    workload = _WORKLOAD.fullmatch(folder.parent.name)
    if not trial or not workload:
        return None
    above = folder.parent.parent
    study = _STUDY.fullmatch(above.name)
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
    twice = runs[runs.duplicated(["submission", "study", "workload", "trial"], keep=False)]
    if len(twice):
        raise UsageError(f"two logs of one run: {twice['folder'].iloc[0]} and {twice['folder'].iloc[1]}; remove one")


class _Table:
    """Collects csv texts, and parses those with the same header at once: thousands of small reads are slow."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {}
        self._runs: dict[str, list[int]] = {}
        self.columns: list[frozenset[str]] = []

    def add(self, run: int, text: str) -> tuple[int, list[str]]:
        """Take the text of a run. Returns the number of its evaluations, and what was left out of it."""
        complaints = []
        lines = text.split("\n")
        if lines[-1]:
            complaints.append("half-written last line")
        rows: dict[str, list[str]] = {}
        header = None
        for line in filter(None, (line.rstrip("\r") for line in lines[:-1])):
            if not line[0].isdigit() and "global_step" in line.split(","):
                header = line  # again after a preemption, perhaps with other columns
                rows.setdefault(header, [])
            elif header is None:
                return 0, [f"no header with global_step: {line[:40]!r}"]
            elif line.count(",") != header.count(","):
                complaints.append("a line with too few or too many fields")
            else:
                rows[header].append(line)
        count = sum(map(len, rows.values()))
        if not count:
            return 0, [*complaints, "no evaluation in it"]
        for header, mine in rows.items():
            self._lines.setdefault(header, []).extend(mine)
            self._runs.setdefault(header, []).extend([run] * len(mine))
        self.columns.append(frozenset(name for header, mine in rows.items() if mine for name in header.split(",")))
        return count, complaints

    def evaluations(self, folders: pd.Series) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
        """All rows, and what was left out of them."""
        tables = []
        for header, lines in self._lines.items():
            table = pd.read_csv(io.StringIO("\n".join([header, *lines])))
            broken = table.select_dtypes(exclude="number").columns
            table[broken] = table[broken].apply(pd.to_numeric, errors="coerce")
            if "score" not in table and "accumulated_submission_time" in table:
                table["score"] = table["accumulated_submission_time"]
            tables.append(table.assign(run=self._runs[header]))
        rows = pd.concat(tables, ignore_index=True).sort_values("run", kind="stable", ignore_index=True)
        skipped = []
        # A row is superseded when a later one of its run is at the same step or before it.
        later = rows["global_step"][::-1].groupby(rows["run"][::-1]).cummin()[::-1]
        following = later.groupby(rows["run"]).shift(-1)
        for reason, bad in {
            "a line without a step number": rows["global_step"].isna(),
            "an evaluation done again after a preemption": following <= rows["global_step"],
        }.items():
            skipped += [(f"{folders[run]}/{MEASUREMENTS}", reason) for run in rows.loc[bad, "run"]]
            rows = rows[~bad.reindex(rows.index)]
        return rows.reset_index(drop=True), skipped
