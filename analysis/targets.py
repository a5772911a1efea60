"""The validation target of every workload, from the benchmark version's data file or from the runs themselves."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.errors import UsageError
from analysis.logs import Logs

VERSIONS = Path(__file__).parent / "versions"
LOWER_IS_BETTER = frozenset({"loss", "wer", "ppl", "ctc_loss", "ce_loss", "l1_loss", "error_rate"})
OWN = "own"  # the version of runs whose workloads no benchmark version knows: each says its target itself


def versions() -> list[str]:
    """The benchmark versions that have a data file."""
    return sorted(path.stem for path in VERSIONS.glob("*.json"))


def load(version: str) -> dict[str, Any]:
    """A version's data file: about, hardware, gpus and workloads. UsageError for an unknown version."""
    path = VERSIONS / f"{version}.json"
    if version not in versions():
        raise UsageError(f"benchmark version {version!r} is unknown; choose from {', '.join(versions())}")
    return json.loads(path.read_text())


def workload_property(meta: dict[str, Any], name: str) -> Any:
    """A property of the workload in meta_data_K.json: miniperf nests them, the official harness dots their names."""
    return meta.get("workload", {}).get(name, meta.get(f"workload.{name}"))


def guess_version(logs: Logs) -> str:
    """The version that knows the runs' workloads, or `own` if none does.

    Workloads that two versions share are told apart by the step_hint in the meta data; without any, the newest counts,
    whose targets are the same.
    """
    names = set(logs.runs["workload"])
    knowing = [version for version in versions() if names <= set(load(version)["workloads"])]
    known = {name for version in versions() for name in load(version)["workloads"]}
    if not names & known:
        return OWN
    hints = _of_meta(logs, "step_hint")
    for version in reversed(knowing):
        if not any(_misfits(load(version), workload, hint) for workload, hint in hints.items()):
            return version
    return knowing[-1] if knowing else max(versions(), key=lambda v: len(names & set(load(v)["workloads"])))


def resolve(logs: Logs, version: str | None = None) -> pd.DataFrame:
    """What the runs' workloads are measured by.

    Args:
        logs: the runs.
        version: the benchmark version, `own` for workloads that bring their target; None: guessed.

    Returns:
        One row per workload, indexed by its name: metric, lower (whether lower is better), target, step_hint,
        max_runtime_s, variant_of (None for a base workload) and scored. attrs: version, gpus, and workloads (how many
        the version scores; of `own` those there are).

    Raises:
        UsageError: no target is known for a workload; runs of one workload disagree; a metric's column is missing.
    """
    version = version or guess_version(logs)
    data: dict[str, Any] = {"workloads": {}, "gpus": 1} if version == OWN else load(version)
    _check_one_version(logs, version, data)
    own = {
        "metric": _of_meta(logs, "target_metric_name"),
        "validation_target": _of_meta(logs, "validation_target_value"),
        "step_hint": _of_meta(logs, "step_hint"),
        "max_runtime_s": _of_meta(logs, "max_allowed_runtime_sec"),
    }
    rows = {}
    for workload in sorted(logs.runs["workload"].unique()):
        entry = data["workloads"].get(workload) or {
            key: found[workload] for key, found in own.items() if workload in found
        }
        if entry.get("metric") is None or entry.get("validation_target") is None:
            raise UsageError(_unknown(workload, version))
        rows[workload] = {
            "metric": entry["metric"],
            "lower": entry["metric"] in LOWER_IS_BETTER,
            "target": float(entry["validation_target"]),
            "step_hint": entry.get("step_hint"),
            "max_runtime_s": entry.get("max_runtime_s"),
            "variant_of": entry.get("variant_of"),
            "scored": entry.get("scored", True),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "workload"
    count = sum(entry.get("scored", True) and "variant_of" not in entry for entry in data["workloads"].values())
    table.attrs.update(version=version, gpus=data["gpus"], workloads=count or len(table))
    _check_columns(logs, table)
    return table


def _unknown(workload: str, version: str) -> str:
    others = [v for v in versions() if v != version and workload in load(v)["workloads"]]
    if others:
        return f"{workload} is no workload of {version} but of {others[0]}: pass --version={others[0]}"
    return (
        f"no target is known for workload {workload!r}: add it with its metric and validation_target to "
        f"analysis/versions/{version if version != OWN else versions()[-1]}.json, or let the runs' meta_data_*.json "
        "say workload.target_metric_name and workload.validation_target_value"
    )


def _of_meta(logs: Logs, name: str) -> dict[str, Any]:
    """The property of each workload whose runs say it. UsageError if they disagree."""
    found: dict[str, dict[Any, str]] = {}
    for workload, meta, folder in zip(logs.runs["workload"], logs.runs["meta"], logs.runs["folder"]):
        if (value := workload_property(meta, name)) is not None:
            found.setdefault(workload, {}).setdefault(value, folder)
    for workload, values in found.items():
        if len(values) > 1:
            (one, here), (two, there) = list(values.items())[:2]
            raise UsageError(
                f"mixed benchmark versions: {workload} has {name} {one} in {here} but {two} in {there}; read them apart"
            )
    return {workload: next(iter(values)) for workload, values in found.items()}


def _misfits(data: dict[str, Any], workload: str, hint: Any) -> bool:
    known = data["workloads"].get(workload, {}).get("step_hint")
    return known is not None and known != hint


def _check_one_version(logs: Logs, version: str, data: dict[str, Any]) -> None:
    for name, key in (("step_hint", "step_hint"), ("validation_target_value", "validation_target")):
        for workload, value in _of_meta(logs, name).items():
            known = data["workloads"].get(workload, {}).get(key)
            if known is not None and abs(known - value) > 1e-9:
                fitting = [v for v in versions() if load(v)["workloads"].get(workload, {}).get(key) == value]
                fix = f"score them apart, with --version={fitting[0]}" if fitting else "no version has that value"
                raise UsageError(
                    f"mixed benchmark versions: the runs of {workload} say {name} {value}, {version} has {known}; {fix}"
                )


def _check_columns(logs: Logs, table: pd.DataFrame) -> None:
    needed = ("validation/" + table["metric"]).to_dict()
    for workload, folder, columns in zip(logs.runs["workload"], logs.runs["folder"], logs.columns):
        missing = [name for name in (needed[workload], "score") if name not in columns]
        if missing == ["score"] and "accumulated_submission_time" in columns:
            continue
        if missing:
            raise UsageError(f"{folder}/eval_measurements.csv has no column {missing[0]}, {_present(columns)}")


def _present(columns: Iterable[str]) -> str:
    there = sorted(name for name in columns if name.startswith("validation/"))
    return f"but {', '.join(there)}" if there else "and no other of the validation set"
