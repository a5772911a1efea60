"""The report as one HTML page that needs no network: data, plotly.js and all in one file."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader
from plotly.offline import get_plotlyjs

from analysis import curves, style
from analysis.logs import Logs
from analysis.speedup import Speedup


def write(
    path: Path,
    logs: Logs,
    targets: pd.DataFrame,
    trials: pd.DataFrame,
    best: pd.DataFrame,
    speedups: dict[str, Speedup],
    baseline: str,
    unit: curves.Unit,
    command: str,
    notes: list[str],
) -> None:
    """Write the page.

    Args:
        logs, targets, trials, best: of `logs.read`, `targets.resolve`, `to_target.trials` and `to_target.studies`.
        speedups: of each other submission over the baseline.
        unit: of the curves' horizontal axis at first.
        command: what makes this page, shown at its foot.
        notes: lines about the logs, shown below the charts.
    """
    of_runs = curves.by_folder(logs, targets)
    looks = style.looks(trials["submission"], baseline)
    data = {
        "baseline": baseline,
        "submissions": [
            {"name": name, "colour": colour, "dash": {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}[line]}
            for name, (colour, line) in looks.items()
        ],
        "workloads": [
            {
                "name": name,
                "metric": row["metric"],
                "target": row["target"],
                "range": curves.interesting_range(best[best["workload"] == name], of_runs, row["lower"], row["target"]),
            }
            for name, row in targets.iterrows()
        ],
        "bands": _bands(best, of_runs, baseline),
        "runs": _runs(trials, best, of_runs),
        "speedups": _speedups(speedups),
    }
    template = Environment(loader=PackageLoader("analysis"), autoescape=True).get_template("report.html.j2")
    # A "</script>" inside the data would end it.
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    path.parent.mkdir(parents=True, exist_ok=True)
    page = template.render(
        plotly=get_plotlyjs(), data=text, command=command, notes=notes, unit=unit, version=targets.attrs["version"]
    )
    path.write_text(page)


def _bands(best: pd.DataFrame, of_runs: dict[str, pd.DataFrame], baseline: str) -> list[dict[str, Any]]:
    bands = []
    keys = best[["workload", "submission"]].drop_duplicates().itertuples(index=False)
    # The baseline first, so that the others are drawn over it.
    for workload, submission in sorted(
        keys, key=lambda key: (key.workload, key.submission != baseline, key.submission)
    ):
        rows = best[(best["workload"] == workload) & (best["submission"] == submission)]
        entry: dict[str, Any] = {"workload": workload, "submission": submission, "studies": len(rows)}
        entry["misses"] = int((~rows["reached"]).sum())
        for unit in ("steps", "seconds"):
            points = curves.band([of_runs[folder] for folder in rows["folder"]], unit)
            entry[unit] = dict(zip(("x", "mean", "low", "high"), map(_numbers, points)))
            entry[unit]["to_target"] = _number(rows[unit].mean())
        bands.append(entry)
    return bands


def _runs(trials: pd.DataFrame, best: pd.DataFrame, of_runs: dict[str, pd.DataFrame]) -> list[dict[str, Any]]:
    picked = set(best["folder"])
    runs = []
    for row in trials.sort_values(["workload", "submission", "study", "trial"]).to_dict("records"):
        curve = of_runs[row["folder"]]
        meta = dict(_flat(row["meta"]))
        command = meta.pop("command", None) or _command(row["flags"])
        runs.append(
            {
                **{key: row[key] for key in ("submission", "workload", "framework", "study", "trial", "folder")},
                "best_of_study": row["folder"] in picked,
                "reached": bool(row["reached"]),
                **{
                    key: _number(row[key])
                    for key in ("steps", "seconds", "last_steps", "last_seconds", "best", "final")
                },
                "evaluations": int(row["count"]),
                "seed": meta.pop("rng_seed", None),
                "hparams": {key: _shown(value) for key, value in row["hparams"].items()},
                "meta": {key: _shown(value) for key, value in meta.items()},
                "command": command,
                "x": {"steps": _numbers(curve["steps"]), "seconds": _numbers(curve["seconds"])},
                "y": _numbers(curve["value"]),
            }
        )
    return runs


def _speedups(speedups: dict[str, Speedup]) -> list[dict[str, Any]]:
    keys = ["ratio", "low", "high", "bound", "misses", "baseline_misses"]
    rows = []
    for submission, result in speedups.items():
        for workload, row in result.workloads.iterrows():
            shown = {key: _number(row[key]) if key != "bound" else row[key] for key in keys}
            rows.append({"submission": submission, "workload": workload, **shown})
    return rows


def _command(flags: dict[str, Any]) -> str | None:
    """The official runner's command line, as far as flags_K.json tells."""
    given = [f"--{key}={value}" for key, value in flags.items() if value not in (None, "", False)]
    return " ".join(["python -m submission_runner", *given]) if given else None


def _flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows = []
    for key, value in tree.items():
        rows += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return rows


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _number(value: float) -> float | None:
    """Six digits; None (JSON knows neither NaN nor infinity) for what is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _numbers(values: pd.Series | np.ndarray) -> list[float | None]:
    return [_number(value) for value in values]
