"""Benchmark versions: their data files, and which of them a set of logs belongs to."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weight_averaging.errors import UsageError

if TYPE_CHECKING:
    from analysis.reading.logs import Logs

VERSIONS = Path(__file__).parent / "versions"
OWN = "own"  # the version of runs whose workloads no benchmark version knows: each says its target itself


def names() -> list[str]:
    """The benchmark versions that have a data file, the newest last."""
    return sorted(path.stem for path in VERSIONS.glob("*.json"))


def load(version: str) -> dict[str, Any]:
    """A version's data file: about, hardware, gpus, self_tuning_budget (by how much it multiplies the budget) and
    workloads. UsageError for an unknown version."""
    if version not in names():
        raise UsageError(f"benchmark version {version!r} is unknown; choose from {', '.join(names())}")
    return json.loads((VERSIONS / f"{version}.json").read_text())


def counted(data: dict[str, Any]) -> set[str]:
    """The workloads that decide a version's score: scored ones, and the held-out variants that these need."""
    return {name for name, entry in data["workloads"].items() if entry.get("scored", True)}


def told(logs: "Logs") -> dict[str, dict[str, list[Any]]]:
    """By the names in `KEYS`, what the meta data of the runs say of each workload, the most frequent first."""
    from analysis.reading.meta import of_workloads  # with pandas; the names of versions need none

    return {key: of_workloads(logs, name) for key, name in KEYS.items()}


def guess(there: set[str], told: dict[str, dict[str, list[Any]]]) -> str:
    """The version that fits the runs best, or `own` if none knows any of their workloads.

    Versions share workloads. They are told apart by step hint, target and budget of the meta data, then by which
    workloads are there and count. What is left goes to the newest.

    Args:
        there: the workloads of the runs.
        told: of `told`.
    """

    def distance(version: str) -> tuple[int, int, int]:
        data = load(version)
        workloads, count = data["workloads"], counted(data)
        misfits = sum(
            workloads[name].get(key, values[0]) not in values
            for key, found in told.items()
            for name, values in found.items()
            if name in count
        )
        return misfits, len(there - set(workloads)), len(count ^ (there & set(workloads)))

    if not any(there & set(load(version)["workloads"]) for version in names()):
        return OWN
    return min(reversed(names()), key=distance)


# Fields of the data files, and what the harness calls them.
KEYS = {
    "metric": "target_metric_name",
    "validation_target": "validation_target_value",
    "step_hint": "step_hint",
    "max_runtime_s": "max_allowed_runtime_sec",
}
