"""Run logs made up for tests, in the official form."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from analysis.comparisons.comparison import Comparison
from analysis.measures import horizon

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


def write_comparison(
    root: Path,
    comparison: Comparison,
    seeds: int = 2,
    workloads: Sequence[str] = ("toy", "toy_two"),
    points: list[dict] | None = None,
) -> None:
    """Runs of a comparison: the higher the learning rate the faster; averaging is best over 5 % of training."""
    for submission in comparison.submissions:
        for trial, point in enumerate(points or comparison.search_space(submission), start=1):
            speed = 0.05 * (point["learning_rate"] / 0.005) ** 0.3
            share = horizon.horizon_of(point, 400)
            if np.isfinite(share):
                speed *= 1.6 - 0.15 * np.log(share / 0.05) ** 2
            speed *= 1 + 0.1 * point.get("final_lr_factor", 0) - 0.2 * ("decay" in submission)
            for workload in workloads:
                for seed in range(seeds):
                    values = 0.8 * (1 - np.exp(-max(speed, 0.001) * (1 + 0.05 * seed) * np.arange(1, 41)))
                    write(root, submission, values, study=seed, trial=trial, workload=workload, hparams=point)
