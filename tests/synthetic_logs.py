"""Run logs made up for tests, in the official form."""

import json
from collections.abc import Sequence
from pathlib import Path

HEADER = "accumulated_submission_time,global_step,score,validation/accuracy,validation/num_examples"


def write(
    root: Path,
    submission: str,
    values: Sequence[float],
    *,
    study: int = 0,
    workload: str = "toy",
    trial: int = 1,
    target: float | None = 0.5,
    seconds_per_step: float = 0.1,
    metric: str = "accuracy",
    hparams: dict | None = None,
    **meta: object,
) -> Path:
    """A trial with one evaluation every 10 updates. Returns its folder."""
    folder = root / submission / f"study_{study}" / f"{workload}_pytorch" / f"trial_{trial}"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [HEADER.replace("accuracy", metric)]
    for i, value in enumerate(values, start=1):
        time = 10 * i * seconds_per_step
        lines.append(f"{time},{10 * i},{time},{value},1000")
    (folder / "eval_measurements.csv").write_text("\n".join(lines) + "\n")
    (folder / "hparams.json").write_text(json.dumps(hparams or {"learning_rate": 0.01, "note": "</script>"}))
    properties = {"target_metric_name": metric, "validation_target_value": target, "step_hint": 10 * len(values)}
    if target is not None:
        content = {"workload": properties, "rng_seed": study, "command": f"python -m scripts.run {submission}"} | meta
        (folder / "meta_data_0.json").write_text(json.dumps(content))
    return folder
