"""Hypothetical entries: a submission's runs with fewer steps to target, to see what that would score.

nadamw_baselinev05:steps*0.82                      the same ratio on every workload
nadamw_baselinev05:steps*wmt=0.71+fastmri=0.72     a ratio for each; 1 for the others
nadamw_baselinev05:steps*ratios.csv                the columns workload and ratio of a table, such as speedups.csv
nadamw_baselinev05:steps*speedups.csv#lawa         the rows of one submission of it
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from weight_averaging.errors import UsageError

MARK = "what if: "  # begins the name of each hypothetical entry, so that it is marked wherever it is shown
TWIN = "mini_"  # begins the name of a miniature: a comparison's ratio for it stands for the benchmark's workload


@dataclass(frozen=True)
class WhatIf:
    """One entry: the submission it starts from, its ratios of steps per workload, that of the others, its name."""

    submission: str
    ratios: dict[str, float]
    otherwise: float
    name: str


def parse(text: str) -> WhatIf:
    """An entry from `NAME:steps*RATIOS`, see above. UsageError in one line for anything else."""
    submission, colon, rest = text.rpartition(":steps*")
    if not colon or not submission or not rest:
        raise UsageError(f"--what_if={text}: expected NAME:steps*RATIO, as in nadamw:steps*0.82")
    name = f"{MARK}{submission}, steps*{Path(rest).name if '.csv' in rest else rest}"
    if ".csv" in rest:
        return WhatIf(submission, _from_table(text, rest), 1.0, name)
    if "=" not in rest:
        return WhatIf(submission, {}, _ratio(text, rest), name)
    ratios = {}
    for part in rest.split("+"):
        workload, _, value = part.partition("=")
        ratios[workload] = _ratio(text, value)
    return WhatIf(submission, ratios, 1.0, name)


def add(trials: pd.DataFrame, entries: Sequence[WhatIf]) -> pd.DataFrame:
    """`Measured.trials` with the entries' rows. A run that missed the target misses it still.

    Raises:
        UsageError: no run of an entry's submission, or of a workload that it has a ratio for.
    """
    added = [trials]
    for entry in entries:
        mine = trials[trials["submission"] == entry.submission]
        if mine.empty:
            there = ", ".join(sorted(trials["submission"].unique()))
            raise UsageError(f"--what_if: no run of {entry.submission!r}; there are {there}")
        ran = sorted(mine["workload"].unique())
        if unknown := [name for name in entry.ratios if name.removeprefix(TWIN) not in ran and name not in ran]:
            raise UsageError(f"--what_if: {entry.submission} has no run of {unknown[0]!r}; it has {', '.join(ran)}")
        twins = {name.removeprefix(TWIN): ratio for name, ratio in entry.ratios.items()}
        ratio = mine["workload"].map({**twins, **entry.ratios}).fillna(entry.otherwise)
        scaled = {unit: mine[unit] * ratio for unit in ("steps", "seconds", "crossed_steps", "crossed_seconds")}
        added.append(mine.assign(submission=entry.name, **scaled))
    return pd.concat(added, ignore_index=True)


def _ratio(text: str, value: str | float) -> float:
    try:
        ratio = float(value)
    except ValueError:
        ratio = 0.0
    if not 0 < ratio < 100:
        raise UsageError(f"--what_if={text}: the ratio {value!r} must be a number above 0, as 0.82")
    return ratio


def _from_table(text: str, rest: str) -> dict[str, float]:
    path, _, submission = rest.partition("#")
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"--what_if={text}: {path} cannot be read: {error}") from None
    if missing := {"workload", "ratio"} - set(table):
        raise UsageError(f"--what_if={text}: {path} has no column {', '.join(sorted(missing))}")
    if "submission" in table:
        names = sorted(table["submission"].astype(str).unique())
        if submission not in names and (submission or len(names) > 1):
            raise UsageError(f"--what_if={text}: name one submission of {path} after a #: {', '.join(names)}")
        table = table[table["submission"] == (submission or names[0])]
    rows = table[(table["workload"] != "all") & table["ratio"].notna()]
    return {str(name): _ratio(text, ratio) for name, ratio in zip(rows["workload"], rows["ratio"])}
