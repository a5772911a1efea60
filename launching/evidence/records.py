"""What is left of a finished run: its evaluations as a CSV file, and a JSON file about it, which comes last."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from miniperf.logs import write_json
from weight_averaging.atomic_file import replacing


def write(path: Path, evaluations: Sequence[tuple[int, dict[str, float]]], metric: str, about: dict[str, Any]) -> None:
    """Both files, each whole at any moment.

    Columns: `step` (completed updates), `seconds` (of training up to there), `validation` and `test` (the metric of the
    raw weights). The averages have `validation@NAME` and `test@NAME`, which are empty where one was not evaluated.
    """
    rows = [
        {
            "step": step,
            "seconds": values["accumulated_submission_time"],
            **{name.replace(f"/{metric}", ""): value for name, value in values.items() if f"/{metric}" in name},
        }
        for step, values in evaluations
    ]
    table = pd.DataFrame(rows)
    names = sorted({*map(str, table)} - {"step", "seconds"}, key=lambda n: (n.partition("@")[2], n.startswith("test")))
    table["seconds"] = table["seconds"].round(2)
    with replacing(path.with_name(f"{path.name}.csv")) as file:
        file.write(table[["step", "seconds", *names]].to_csv(index=False, float_format="%.7g").encode())
    write_json(path.with_name(f"{path.name}.json"), about)


def finished(path: Path) -> bool:
    return path.with_name(f"{path.name}.json").exists()


def about(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(path.with_name(f"{path.name}.json").read_text())
    return result


def table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path.with_name(f"{path.name}.csv"))


def final(path: Path) -> float:
    """The validation metric of the raw weights at the end."""
    return float(table(path)["validation"].iloc[-1])
