"""What the meta data of runs say of their workload, ruleset and machine."""

from collections import Counter
from typing import Any

import pandas as pd

from analysis.reading.logs import Logs
from weight_averaging.errors import UsageError

RULESETS = {"external": "external tuning", "self": "self-tuning"}


def workload_property(meta: dict[str, Any], name: str) -> Any:
    """A property of the workload in meta_data_K.json: miniperf nests them, the official harness dots their names."""
    nested = meta.get("workload")
    return nested.get(name, meta.get(f"workload.{name}")) if isinstance(nested, dict) else meta.get(f"workload.{name}")


def of_workloads(logs: Logs, name: str) -> dict[str, list[Any]]:
    """The property of each workload whose runs say it: all values, the most frequent first.

    Raises:
        UsageError: a value is no number where one is needed.
    """
    values = [workload_property(meta, name) for meta in logs.runs["meta"]]
    if name != "target_metric_name":
        values = [_number(value, name, folder) for value, folder in zip(values, logs.runs["folder"])]
    table = pd.DataFrame({"workload": logs.runs["workload"], "value": pd.Series(values, dtype=object)}).dropna()
    return {str(workload): list(group.value_counts().index) for workload, group in table.groupby("workload")["value"]}


def ruleset(logs: Logs) -> str | None:
    """The tuning ruleset of the runs, `external` or `self`: as flags_K.json say, else as a folder external_tuning or
    self_tuning above them does. None where neither does.

    Raises:
        UsageError: there are runs of both.
    """
    told = [_ruleset(flags, folder) for flags, folder in zip(logs.runs["flags"], logs.runs["folder"])]
    of_submission = pd.Series(told, index=logs.runs["submission"], dtype=object).dropna()
    found = of_submission.unique()
    if len(found) > 1:
        parts = [
            f"{', '.join(sorted(set(of_submission.index[of_submission == one])))} ({RULESETS[one]})"
            for one in sorted(found)
        ]
        raise UsageError(f"two rulesets in one set of logs: {' and '.join(parts)}; choose one with --submissions")
    return found[0] if len(found) else None


def gpus(logs: Logs) -> list[int]:
    """The numbers of GPUs that the meta data say, the most frequent first."""
    counts = [meta.get("gpu.count") for meta in logs.runs["meta"]]
    found = Counter(count for count in counts if isinstance(count, int) and count > 0)
    return [count for count, _ in found.most_common()]


def _ruleset(flags: dict[str, Any], folder: str) -> str | None:
    said = flags.get("tuning_ruleset")
    if said in RULESETS:
        return said
    return next((name for name in RULESETS if f"/{name}_tuning/" in f"/{folder}"), None)


def _number(value: Any, name: str, folder: str) -> float | None:
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UsageError(f"{folder}/meta_data_*.json: workload.{name} is {value!r}, no number") from None
