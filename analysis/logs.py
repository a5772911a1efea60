"""Reading folders of run logs in the official form, miniperf's and the official harness's alike.

A run is a folder `.../<submission>[/study_K]/<workload>_<framework>/trial_N` with an eval_measurements.csv.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

LOWER_IS_BETTER = {"loss", "wer", "ppl", "ctc_loss"}


@dataclass(frozen=True)
class Run:
    """One trial: where it comes from and its evaluations, one row each, ordered by step."""

    submission: str
    study: int
    workload: str
    trial: int
    folder: Path
    evaluations: pd.DataFrame
    meta: dict

    @property
    def metric(self) -> str | None:
        return self.meta.get("workload", {}).get("target_metric_name")

    @property
    def target(self) -> float | None:
        return self.meta.get("workload", {}).get("validation_target_value")


def read_runs(root: str | Path) -> tuple[list[Run], list[str]]:
    """All runs below `root`, and a line for each file that could not be read.

    Raises:
        ValueError: there is no run below `root`.
    """
    root = Path(root)
    runs, skipped = [], []
    for path in sorted(root.rglob("eval_measurements.csv")):
        place = _place(root, path.parent)
        if place is None:
            skipped.append(f"{path}: not in a folder <submission>/<workload>_<framework>/trial_N")
            continue
        try:
            table = pd.read_csv(path, on_bad_lines="skip")
            steps = pd.to_numeric(table["global_step"], errors="coerce")  # a repeated header is not a number
        except (KeyError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
            skipped.append(f"{path}: {' '.join(str(error).split())[:100]}")
            continue
        table = table[steps.notna()].apply(pd.to_numeric, errors="coerce").sort_values("global_step")
        table = table.drop_duplicates("global_step", keep="last").reset_index(drop=True)
        if table.empty:
            skipped.append(f"{path}: no evaluation in it")
            continue
        runs.append(Run(*place, path.parent, table, _meta(path.parent)))
    if not runs:
        raise ValueError(f"no run below {root}: expected .../<workload>_<framework>/trial_N/eval_measurements.csv")
    return runs, skipped


def _place(root: Path, folder: Path) -> tuple[str, int, str, int] | None:
    trial = re.fullmatch(r"trial_(\d+)", folder.name)
    workload = re.fullmatch(r"(.+)_(pytorch|jax)", folder.parent.name)
    if not trial or not workload:
        return None
    above = folder.parent.parent
    study = re.fullmatch(r"study_(\d+)", above.name)
    name = above.parent if study else above
    submission = name.relative_to(root).as_posix() if name != root else root.name
    return submission, int(study[1]) if study else 0, workload[1], int(trial[1])


def _meta(folder: Path) -> dict:
    files = sorted(folder.glob("meta_data_*.json"))
    try:
        return json.loads(files[-1].read_text()) if files else {}
    except json.JSONDecodeError:
        return {}
