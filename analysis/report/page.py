"""The report as one HTML page that needs no network: data, plotly.js and all in one file."""

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader
from plotly.offline import get_plotlyjs

from analysis.figures import learning_curves, style
from analysis.measures import curves, gpu_hours, results, speedup
from analysis.measures.results import Results
from analysis.measures.speedup import Speedup
from analysis.report import run_rows
from analysis.report.run_rows import finite
from analysis.targets.resolve import base
from analysis.text import number
from weight_averaging.atomic_file import replacing


def write(path: Path, found: Results, command: str) -> None:
    """Write the page.

    Args:
        found: what it shows.
        command: what makes this page, shown at its foot.
    """
    of_runs = found.measured.curves
    ranked = list(found.scores.index)
    scale, label = learning_curves.axis_of(found.best, found.unit)
    scored = base(found.targets).index
    data = {
        "baseline": found.baseline,
        "unit": found.unit,
        "axis": {"scale": scale, "label": label},
        "many": style.MANY,
        "leaders": len(style.COLOURS) - 1,
        "submissions": _submissions(found),
        "spent": gpu_hours.heading(found.hours, found.gpus),
        "workloads": [
            {
                "name": name,
                "metric": row["metric"],
                "target": row["target"],
                "lower": bool(row["lower"]),
                "part": "" if name in scored else "held-out" if pd.notna(row["variant_of"]) else "not scored",
                "range": curves.interesting_range(
                    found.best[found.best["workload"] == name], of_runs, row["lower"], row["target"]
                ),
            }
            for name, row in found.targets.iterrows()
        ],
        "profile": {
            "tau": _numbers(found.profile.columns.to_numpy(dtype=float)),
            "share": {name: _numbers(found.profile.loc[name]) for name in ranked},
        },
        "bands": _bands(found, of_runs),
        "runs": run_rows.rows(found.trials, found.best, of_runs, found.unit),
        "ratios": _ratios(found.ratios),
        "shares": [f"{share:.0%}" for share in found.leads.ratio.columns] if found.leads else [],
        "leads": _leads(found),
    }
    template = Environment(loader=PackageLoader("analysis.report", ""), autoescape=True).get_template("report.html.j2")
    page = template.render(
        plotly=_packed(get_plotlyjs()),
        data=_packed(json.dumps(data, allow_nan=False, separators=(",", ":"))),
        command=command,
        notes=found.notes,
        title=results.title(found),
        workloads=found.targets.attrs["workloads"],
        baseline=found.baseline,
        what={"seconds": "time", "steps": "steps"}[found.unit],
    )
    with replacing(path) as file:
        file.write(page.encode())


def _packed(text: str) -> str:
    """Compressed, in letters: plotly.js alone is 4.8 MB, and 2 MB so. The browser unpacks it."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _submissions(found: Results) -> list[dict[str, Any]]:
    """The submissions, the best first."""
    spent = gpu_hours.shown(found.hours)
    looks = style.looks(list(found.scores.index), found.baseline)
    rows = []
    for name, score in zip(map(str, found.scores.index), found.scores):
        ratio = found.ratios.get(name)
        colour, line = looks[name]
        rows.append(
            {
                "name": name,
                "rank": found.ranks[name],
                "score": f"{score:.4f}",
                "reached": found.reached[name],
                "hours": spent[name],
                "ratio": ratio and speedup.shown(ratio),
                "interval": ratio and speedup.interval(*ratio.over_studies, ratio.bound).replace("-", ""),
                "official": ratio and number(ratio.official, ".3f", missing=""),
                "colour": colour,
                "dash": {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}[line],
            }
        )
    return rows


def _bands(found: Results, of_runs: dict[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """Per submission and workload: curve, time or steps to target, and misses. The baseline first, so that the others
    are drawn over it."""
    bands = []
    medians = found.times.reindex(columns=found.targets.index).to_dict("index")
    groups = dict(iter(found.best.groupby(["submission", "workload"])))
    order = [found.baseline, *(name for name in found.scores.index if name != found.baseline)]
    for submission in order:
        for workload in found.targets.index:
            if (rows := groups.get((submission, workload))) is None:
                continue
            points = curves.band([of_runs[folder] for folder in rows["folder"]], found.unit)
            bands.append(
                {
                    "workload": workload,
                    "submission": submission,
                    "studies": len(rows),
                    "misses": int((~rows["reached"]).sum()),
                    "median": finite(medians[submission][workload]),
                    "mean_to_target": finite(rows[found.unit].mean()),
                    **dict(zip(("x", "mean", "low", "high"), map(_numbers, points))),
                }
            )
    return bands


def _ratios(ratios: dict[str, Speedup]) -> list[dict[str, Any]]:
    """Per submission and workload, and over all (no workload)."""
    if not ratios:
        return []
    table = speedup.rows(ratios).replace({"workload": {"all": ""}})
    for name in ("ratio", "low", "high"):
        table[name] = pd.Series(_numbers(table[name]), dtype=object)
    columns = ["submission", "workload", "ratio", "low", "high", "bound", "misses", "baseline_misses"]
    return [dict(zip(columns, row)) for row in table[columns].astype(object).itertuples(index=False)]


def _leads(found: Results) -> list[dict[str, Any]]:
    """Per workload and submission but the baseline the ratios of `lead.table`, in the order of the shares."""
    if found.leads is None:
        return []
    rows = zip(found.leads.ratio.index, found.leads.ratio.to_numpy(dtype=float))
    return [
        {"workload": name[0], "submission": name[1], "ratios": _numbers(ratios)}
        for name, ratios in rows
        if name[1] != found.baseline
    ]


def _numbers(values: pd.Series | np.ndarray) -> list[float | None]:
    return [finite(value) for value in values]
