"""Results of rehearsals as a table: in a terminal, in Markdown, as a page."""

import html
from collections.abc import Sequence
from typing import Any

from launching.official_workloads import base_name, needs_of

COLUMNS = (
    "workload", "framework", "submission", "batch", "passed", "average seen", "raw weights back", "checkpoint",
    "first batch s", "first update s", "update s", "evaluation s", "host GiB", "device GiB", "real runs h",
    "processor s", "total s",
)  # fmt: skip
FIRST_NUMBER = COLUMNS.index("first batch s")
TRIALS, STUDIES, SELF_TUNING = 5, 3, 1.5


def passed(result: dict[str, Any]) -> bool:
    return all(check["passed"] is not False for check in result["checks"])


def hours(result: dict[str, Any]) -> float | None:
    """What a real entry would take on these devices at most: all its trials and studies, to the budget or step hint.

    None unless the batches were the official ones, on GPUs: from others nothing follows.
    """
    cell, update = result["cell"], result["measured"]["update"]
    if not (cell["gpus"] and cell["full_batch"] and update) or result["batch"] != result.get("official_batch"):
        return None
    needs = needs_of(base_name(cell["workload"]), cell["framework"])
    self_tuning = cell["search_space"] is None
    budget = needs.a100_seconds * (SELF_TUNING if self_tuning else 1.0)
    runs = STUDIES * (1 if self_tuning else TRIALS)
    return runs * min(budget, needs.step_hint * update) / 3600


def rows(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [_row(result) for result in results]


def _row(result: dict[str, Any]) -> list[str]:
    cell, measured = result["cell"], result["measured"]
    said = {check["name"]: check for check in result["checks"]}
    failed = [check for check in result["checks"] if check["passed"] is False]
    workload = result["workload"] + (f" x {devices}" if (devices := max(cell["gpus"], cell["ranks"])) > 1 else "")
    verdict = "yes" if not failed else "NO: " + "; ".join(f"{check['name']}: {check['says']}" for check in failed)
    if failed and result["said"]:
        verdict += f" ({result['said']})"
    return [
        workload, cell["framework"], cell["submission"], _batch(result), verdict,
        *(said[name]["says"] for name in ("average", "raw weights back", "checkpoint")),
        *(_number(measured[name]) for name in ("first_batch", "first_update", "update", "evaluation")),
        _number(measured["host_gib"]), _number(measured["device_gib"]), _number(hours(result)),
        _number(measured["processor"]), _number(result["seconds"]),
    ]  # fmt: skip


def _batch(result: dict[str, Any]) -> str:
    """The official one, or what was taken of it."""
    batch, official = result["batch"], result.get("official_batch")
    if batch is None or not result["cell"]["full_batch"]:
        return "-" if batch is None else str(batch)
    return str(batch) if batch == official else f"{batch} of {official}: more does not fit"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def text(results: Sequence[dict[str, Any]]) -> str:
    """For a terminal: a few lines a rehearsal."""
    lines = []
    for result, cells in zip(results, rows(results)):
        lines.append(f"{' '.join(cells[:3])}: {'passed' if passed(result) else 'FAILED'}, {cells[-1]} s")
        lines += [f"  {_mark(check['passed'])} {check['name']}: {check['says']}" for check in result["checks"]]
        if result["said"] and not passed(result):
            lines.append(f"  the run said: {result['said']}")
        numbers = [f"{name} {cell}" for name, cell in list(zip(COLUMNS, cells))[FIRST_NUMBER:-1] if cell != "-"]
        lines.append("  " + ", ".join([f"batch {_batch(result)}", *numbers]))
    return "\n".join(lines)


def _mark(passed: bool | None) -> str:
    return {True: "ok", False: "NO", None: "--"}[passed]


def markdown(results: Sequence[dict[str, Any]]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows(results)])


def page(results: Sequence[dict[str, Any]], notes: Sequence[str]) -> str:
    """One HTML file that needs nothing else."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in COLUMNS)
    body = []
    for result, cells in zip(results, rows(results)):
        kind = "" if passed(result) else ' class="failed"'
        body.append(f"<tr{kind}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    paragraphs = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    style = (
        "body{font:14px sans-serif;margin:2em}table{border-collapse:collapse}"
        "td,th{border:1px solid #ccc;padding:4px 8px;text-align:left;vertical-align:top}"
        "th{background:#f3f3f3}.failed td{background:#fdecea}"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Rehearsals</title>'
        f"<style>{style}</style></head><body><h1>Rehearsals</h1>{paragraphs}"
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></body></html>\n"
    )
