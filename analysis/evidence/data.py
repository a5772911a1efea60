"""Numbers by seed: collected from the folder that scripts.evidence writes, and read again from compact CSV files.

They go back into such a folder too, where they count as finished runs.

`runs.csv` has a line for each run. `searches.csv` has one for each run that only told how good a rate is.
`<part>_<workload>_<variant>.csv` has all evaluations of such runs, with the seed in the first column.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from weight_averaging.atomic_file import replacing
from weight_averaging.errors import UsageError

RAW = "raw"
# Of seed_K.json, what tables need; hyperparameters beside the rate are the plan's.
FACTS = (
    "part", "workload", "variant", "seed", "submission", "schedule", "learning_rate", "rate_at_edge", "length", "steps",
    "batch_size", "passes", "metric", "higher_is_better", "target_share", "validation_target", "test_target",
    "submission_seconds", "evaluation_seconds",
)  # fmt: skip
# Of newer runs, beside them.
SHARE = "averaging_share"  # seconds of all averages together over those of training alone


@dataclass(frozen=True, eq=False)
class Run:
    """A run with its evaluations.

    Attributes:
        facts: by the names of `FACTS`, and `windows`: the updates that each LAWA covers, by its name.
        table: columns step, validation, test and those of averages, behind an @; NaN where not evaluated.
    """

    facts: dict[str, Any]
    table: pd.DataFrame

    @property
    def key(self) -> tuple[str, str, str, int]:
        return tuple(self.facts[name] for name in ("part", "variant", "workload", "seed"))  # type: ignore[return-value]

    @property
    def sign(self) -> int:
        """By which a metric is multiplied so that more is better."""
        return 1 if self.facts["higher_is_better"] else -1

    @property
    def steps(self) -> int:
        return int(self.facts["steps"])

    @cached_property
    def averages(self) -> list[str]:
        return [str(name).removeprefix("validation@") for name in self.table if str(name).startswith("validation@")]

    def curve(self, name: str, split: str = "validation", grid: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Steps and the metric, signed so that more is better, of an average or of the `raw` weights.

        Where an average is due and not ready yet an evaluation sees the raw weights, as in the submissions. That of
        the very first update has no part in it, nor have those that are not finite.

        Args:
            grid: of the evaluations of this average; default: of `name` itself.
        """
        steps, values = self._evaluated(name, split, grid)
        known = np.isfinite(values)
        return steps[known], self.sign * values[known]

    def _evaluated(self, name: str, split: str, grid: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The same with all evaluations, and the metric as it is."""
        raw = self.table[split].to_numpy(dtype=float)
        values = raw if name == RAW else self.table[f"{split}@{name}"].to_numpy(dtype=float)
        of = RAW if name == RAW and grid is None else grid or name
        due = self._due(of, split)
        ready = np.logical_or.accumulate(~np.isnan(values))  # from then on a NaN is one
        return self.table["step"].to_numpy()[due].astype(float), np.where(ready, values, raw)[due]

    def _due(self, name: str, split: str) -> np.ndarray:
        """Where an average was evaluated, or would have been had it been ready."""
        steps = self.table["step"].to_numpy()
        numbers = np.round(steps / self._every).astype(int)
        regular = np.abs(steps - numbers * self._every) < 0.5
        column = split if name == RAW else f"{split}@{name}"
        there = np.flatnonzero(self.table[column].notna().to_numpy() & regular & (steps < self.steps))
        period = math.gcd(*numbers[there].tolist()) if len(there) else 0
        return (steps == self.steps) | (regular & (numbers % period == 0) if period else False)

    @cached_property
    def _every(self) -> int:
        """Updates between the evaluations."""
        return int(np.diff(self.table["step"].to_numpy()).max()) if len(self.table) > 1 else self.steps

    def final(self, name: str, split: str = "validation") -> float:
        """The metric at the end, as it is; NaN where it is not finite, of a run that diverged."""
        _, values = self._evaluated(name, split)
        return float(values[-1]) if len(values) and math.isfinite(values[-1]) else math.nan


@dataclass(frozen=True)
class Evidence:
    """All runs, and a table of the searches of rates."""

    runs: list[Run]
    searches: pd.DataFrame

    def of(self, part: str, variant: str) -> dict[str, list[Run]]:
        """The runs by workload, each with its seeds in order."""
        result: dict[str, list[Run]] = {}
        for run in sorted(self.runs, key=lambda run: run.key):
            if run.key[:2] == (part, variant):
                result.setdefault(run.key[2], []).append(run)
        return result

    def parts(self) -> list[str]:
        return sorted({run.key[0] for run in self.runs})


def collect(source: Path, data: Path) -> tuple[int, int]:
    """Copy the numbers of all finished runs in `source` into `data`, in place of what is there.

    Returns:
        How many runs, and how many of searches.
    Raises:
        UsageError: there are none.
    """
    found = list(_finished(source))
    if not found:
        raise UsageError(f"--collect={source} has no finished run; make some with scripts.evidence --out={source}")
    data.mkdir(parents=True, exist_ok=True)
    for old in data.glob("*.csv"):
        old.unlink()
    runs: list[dict[str, Any]] = []
    searches: list[dict[str, Any]] = []
    tables: dict[str, list[pd.DataFrame]] = {}
    for search, facts, table in found:
        line = {name: facts[name] for name in FACTS} | ({SHARE: facts[SHARE]} if SHARE in facts else {})
        if search:
            best = table["validation"].max() if facts["higher_is_better"] else table["validation"].min()
            line |= {"best": best, "final": table["validation"].iloc[-1]}
            searches.append(line)
            continue
        intervals, windows = facts["intervals"], facts["windows"]
        line |= {f"window@{name}": intervals[name] * held for name, held in windows.items() if held}
        runs.append(line)
        name = "_".join(str(facts[key]) for key in ("part", "workload", "variant"))
        tables.setdefault(name, []).append(table.drop(columns="seconds", errors="ignore").assign(seed=facts["seed"]))
    _write(data / "runs.csv", pd.DataFrame(runs), ["part", "workload", "variant", "seed"])
    _write(data / "searches.csv", pd.DataFrame(searches, columns=[*FACTS, "best", "final"]), ["part", "workload"])
    for name, parts in tables.items():
        together = pd.concat(parts)
        columns = ["seed", *(column for column in together if column != "seed")]
        _write(data / f"{name}.csv", together[columns], ["seed", "step"])
    return len(runs), len(searches)


def restore(data: Path, out: Path) -> tuple[int, int]:
    """Put the numbers in `data` into `out` as finished runs, so that scripts.evidence goes on from them.

    What is finished there stays as it is. `collect` of the new files gives those of `data`, byte for byte. Of a search
    the best and the last metric are there, and seconds of evaluations are not.

    Returns:
        How many runs were put there, and how many of searches.
    Raises:
        UsageError: `data` has no runs.csv.
    """
    evidence = load(data)
    pairs: list[tuple[Path, dict[str, Any], pd.DataFrame]] = []
    for run in evidence.runs:
        facts = {**run.facts, "intervals": dict.fromkeys(run.facts["windows"], 1)}  # a window is known as updates
        pairs.append((_home(out, facts) / f"seed_{facts['seed']}", facts, run.table))
    for row in evidence.searches.to_dict("records"):
        facts = {str(name): value for name, value in row.items()}
        best, final = facts.pop("best"), facts.pop("final")
        metric = [final] if best == final else [best, final]
        pairs.append((_home(out, facts) / "search" / f"rate_{facts['learning_rate']:g}", facts, _searched(metric)))
    put = [path for path, facts, table in pairs if _put(path, facts, table)]
    searches = sum(path.parent.name == "search" for path in put)
    return len(put) - searches, searches


def _home(out: Path, facts: dict[str, Any]) -> Path:
    return Path(out, *(str(facts[name]) for name in ("part", "workload", "variant")))


def _searched(metric: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"step": range(len(metric)), "validation": metric})


def _put(path: Path, facts: dict[str, Any], table: pd.DataFrame) -> bool:
    """Whether it was not there; the JSON file comes last, as of a run."""
    about = path.with_name(f"{path.name}.json")
    if about.exists():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path.with_name(f"{path.name}.csv")) as file:
        file.write(table.to_csv(index=False).encode())
    known = {name: value for name, value in facts.items() if not (isinstance(value, float) and math.isnan(value))}
    with replacing(about) as file:
        file.write(json.dumps(dict.fromkeys(FACTS) | known, indent=2).encode())
    return True


def load(data: Path) -> Evidence:
    """Of a folder that `collect` has written. UsageError if it has none."""
    if not (data / "runs.csv").exists():
        raise UsageError(f"{data} has no runs.csv: --collect the results of scripts.evidence into it first")
    tables: dict[str, pd.DataFrame] = {}
    runs = []
    for row in pd.read_csv(data / "runs.csv").to_dict("records"):
        facts = {str(column): value for column, value in row.items()}
        name = f"{facts['part']}_{facts['workload']}_{facts['variant']}"
        if name not in tables:
            tables[name] = pd.read_csv(data / f"{name}.csv")
        mine = tables[name].query(f"seed == {facts['seed']}").drop(columns="seed").dropna(axis="columns", how="all")
        windows = {column: facts.pop(column) for column in list(facts) if column.startswith("window@")}
        facts["windows"] = {
            column.removeprefix("window@"): int(updates) for column, updates in windows.items() if not np.isnan(updates)
        }
        runs.append(Run(facts, mine.reset_index(drop=True)))
    return Evidence(runs, pd.read_csv(data / "searches.csv"))


def _finished(source: Path) -> Iterator[tuple[bool, dict[str, Any], pd.DataFrame]]:
    """Whether of a search, the facts, the evaluations."""
    for path in sorted(source.glob("*/*/*/**/*.json")):
        home = path.relative_to(source).parts
        if len(home) in (4, 5) and path.with_suffix(".csv").exists():
            yield home[3] == "search", json.loads(path.read_text()), pd.read_csv(path.with_suffix(".csv"))


def _write(path: Path, table: pd.DataFrame, order: list[str]) -> None:
    with replacing(path) as file:
        file.write(table.sort_values(order, kind="stable").to_csv(index=False, float_format="%.6g").encode())
