"""The validation target of every workload, from the benchmark version's data file or from the runs themselves."""

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from analysis.reading import meta
from analysis.reading.logs import Logs
from analysis.targets import versions
from analysis.targets.versions import OWN
from weight_averaging.errors import UsageError

LOWER_IS_BETTER = frozenset({"loss", "wer", "ppl", "ctc_loss", "ce_loss", "l1_loss", "error_rate"})


def resolve(logs: Logs, version: str | None = None) -> pd.DataFrame:
    """What the runs' workloads are measured by.

    Args:
        logs: the runs.
        version: the benchmark version, `own` for workloads that bring their target; None: guessed.

    Returns:
        One row per workload, indexed by its name: metric, lower (whether lower is better), target, step_hint,
        budget_s (seconds that the runs' ruleset allows; NaN for the version `own`, whose runs end by steps), variant_of
        (None for a base workload) and scored. A workload that does not count and has no target is left out.
        attrs: version, ruleset (external, self or None), gpus (of the machine, as the meta data say, else the
        version's), workloads (how many the version scores; of `own` those there are), variants (of the version: the
        base workload of each that counts) and notes (lines).

    Raises:
        UsageError: no target is known for any workload, or for one that counts. Runs of one workload that counts
            disagree, or the version with them. A metric's column is missing. There are two rulesets.
    """
    there = sorted(logs.runs["workload"].unique())
    told = versions.told(logs)
    version = version or versions.guess(set(there), told)
    data: dict[str, Any] = {"workloads": {}, "gpus": 1} if version == OWN else versions.load(version)
    ruleset = meta.ruleset(logs)
    factor = data.get("self_tuning_budget", 1.0) if ruleset == "self" else 1.0
    count = set(there) if version == OWN else versions.counted(data) & set(there)
    notes = _disagreements(logs, version, data, told, count)
    rows = {}
    for workload in there:
        entry = data["workloads"].get(workload) or {
            key: found[workload][0] for key, found in told.items() if workload in found
        }
        if entry.get("metric") is None or entry.get("validation_target") is None:
            if not count or workload in count:
                raise UsageError(_unknown(workload, version))
            notes.append(f"{workload} is no workload of {version} and brings no target: left out")
            continue
        budget = entry.get("max_runtime_s") if version != OWN else None
        rows[workload] = {
            "metric": str(entry["metric"]),
            "lower": entry["metric"] in LOWER_IS_BETTER,
            "target": float(entry["validation_target"]),
            "step_hint": entry.get("step_hint"),
            "budget_s": math.nan if budget is None else float(budget) * factor,
            "variant_of": entry.get("variant_of"),
            "scored": entry.get("scored", True) and (version == OWN or workload in data["workloads"]),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "workload"
    scored = sum(entry.get("scored", True) and "variant_of" not in entry for entry in data["workloads"].values())
    machines = meta.gpus(logs)
    if len(machines) > 1:
        notes.append(f"machines of {', '.join(map(str, machines))} GPUs: GPU-hours are of {machines[0]}")
    table.attrs.update(
        version=version,
        ruleset=ruleset,
        gpus=(machines or [data["gpus"]])[0],
        workloads=scored or len(table),
        variants={name: entry["variant_of"] for name, entry in data["workloads"].items() if "variant_of" in entry},
        notes=notes,
    )
    if odd := _without_column(logs, table, count):
        notes += [f"{problem}: {workload} is left out" for workload, problem in odd.items()]
    return table.drop(index=list(odd))


def base(targets: pd.DataFrame) -> pd.DataFrame:
    """The rows of the scored base workloads: those that scores, ratios and GPU-hours are over."""
    return targets[targets["variant_of"].isna() & targets["scored"]]


def _unknown(workload: str, version: str) -> str:
    others = [v for v in versions.names() if v != version and workload in versions.load(v)["workloads"]]
    if others:
        return f"{workload} is no workload of {version} but of {others[0]}: pass --version={others[0]}"
    return (
        f"no target is known for workload {workload!r}: add it with its metric and validation_target to "
        f"analysis/targets/versions/{version if version != OWN else versions.names()[-1]}.json, or let the runs' "
        "meta_data_*.json say workload.target_metric_name and workload.validation_target_value"
    )


def _disagreements(
    logs: Logs, version: str, data: dict[str, Any], told: dict[str, dict[str, list[Any]]], count: set[str]
) -> list[str]:
    """Notes on runs of workloads that do not count. UsageError where a workload that counts says two things, or
    another thing than the version."""
    notes = []
    for key, found in told.items():
        name = versions.KEYS[key]
        for workload, values in found.items():
            known = data["workloads"].get(workload, {}).get(key)
            if len(values) > 1 and workload in count:
                here, there = (_first(logs, workload, name, value) for value in values[:2])
                raise UsageError(
                    f"mixed benchmark versions: {workload} has {name} {_short(values[0])} in {here} but "
                    f"{_short(values[1])} in {there}; read them apart"
                )
            if known is None or all(_same(known, value) for value in values):
                continue
            odd = next(value for value in values if not _same(known, value))
            said = f"the runs of {workload} say {name} {_short(odd)}, {version} has {_short(known)}"
            if workload not in count:
                notes.append(f"{said}; the workload does not count, and is measured by the latter")
                continue
            fitting = [v for v in versions.names() if versions.load(v)["workloads"].get(workload, {}).get(key) == odd]
            if fitting:
                best = versions.guess(set(logs.runs["workload"]), told)
                fix = best if best in fitting else fitting[0]
                raise UsageError(f"mixed benchmark versions: {said}; score them apart, with --version={fix}")
            if key != "max_runtime_s":  # on another machine one may have another budget
                raise UsageError(f"mixed benchmark versions: {said}; no version has that value")
            notes.append(f"{said}, which is what a miss counts with")
    return notes


def _first(logs: Logs, workload: str, name: str, value: Any) -> str:
    of_workload = logs.runs[logs.runs["workload"] == workload]
    said = (meta.workload_property(one, name) for one in of_workload["meta"])
    return next(folder for one, folder in zip(said, of_workload["folder"]) if one is not None and _same(value, one))


def _same(one: Any, other: Any) -> bool:
    try:
        return abs(float(one) - float(other)) <= 1e-9
    except ValueError:  # a metric's name
        return one == other


def _short(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float | int) else str(value)


def _without_column(logs: Logs, table: pd.DataFrame, count: set[str]) -> dict[str, str]:
    """Workloads of which a file has no column of their metric, with a line on it. UsageError if one counts."""
    needed = ("validation/" + table["metric"]).to_dict()
    odd = {}
    for workload, folder, columns in zip(logs.runs["workload"], logs.runs["folder"], logs.columns):
        if workload not in needed:
            continue
        missing = [name for name in (needed[workload], "score") if name not in columns]
        if not missing or (missing == ["score"] and "accumulated_submission_time" in columns):
            continue
        odd[workload] = f"{folder}/eval_measurements.csv has no column {missing[0]}, {_present(columns)}"
        if workload in count:
            raise UsageError(odd[workload])
    return odd


def _present(columns: Iterable[str]) -> str:
    there = sorted(name for name in columns if name.startswith("validation/"))
    return f"but {', '.join(there)}" if there else "and no other of the validation set"
