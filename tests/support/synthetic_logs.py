"""Run logs made up for tests, in the official form, and what is read from them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.comparisons.comparison import Comparison
from analysis.measures import horizon, results
from analysis.reading import logs

HIT = [0.1, 0.2, 0.6]  # reaches the target of .5 at the third evaluation, after 30 updates and 3 s
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


def csv_of(folder):
    """The evaluations of a run, by its folder."""
    return folder / "eval_measurements.csv"


def official(
    root, submission, workload="fastmri", *, hint=36189, values=(0.7, 0.72, 0.73), meta=None, flags=None, **more
):
    """A run in the official form: dotted meta data, flags."""
    folder = write(root, submission, values, workload=workload, metric="ssim", target=None, **more)
    content = {"workload.step_hint": hint, "workload.validation_target_value": 0.723653, **(meta or {})}
    (folder / "meta_data_0.json").write_text(json.dumps(content))
    (folder / "flags_0.json").write_text(json.dumps({"tuning_ruleset": "external", **(flags or {})}))
    return folder


def steps(root):
    """Updates to target of the only submission."""
    return results.of(logs.read(root)).trials["steps"].tolist()


def notes(root, **options):
    """What is said of the logs, a line each."""
    return "\n".join(results.of(logs.read(root), **options).notes)


def write_runs(root):
    """Two workloads, three submissions, two studies; on the second workload `ema` misses the target once."""
    steps = np.arange(1, 21)
    for study in range(2):
        for name, speed in (("nadamw", 0.05), ("lawa", 0.09), ("ema", 0.08)):
            for workload, best in (("toy", 0.8), ("toy_two", 0.7)):
                missed = (name, workload, study) == ("ema", "toy_two", 1)
                values = (0.3 if missed else best) * (1 - np.exp(-speed * (1 + 0.1 * study) * steps))
                machine = {"system_hardware_info": {"cpu_model_name": "a fine machine"}}
                write(root, name, values, study=study, workload=workload, target=0.3, **machine)


def plain(columns, variant_of=None):
    """Targets of made-up workloads, which all count."""
    result = pd.DataFrame({"variant_of": None, "scored": True, "budget_s": np.nan, "step_hint": 100}, index=columns)
    for variant, base in (variant_of or {}).items():
        result.loc[variant, "variant_of"] = base
    return result
