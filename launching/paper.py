"""The grids behind the figures of "When, Where and Why to Average Weights?" (arXiv 2502.06761), per workload.

Each experiment varies some hyperparameters around the point that the authors used for the workload: of NadamW, or of
AdamW for the language model. The paper gives the ranges of its intervals, windows and decays on AlgoPerf; the values
between are powers of two and round numbers here.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launching.official_workloads import SEVEN

# Points of tuning_search_spaces/nadamw.json, from 1.
POINT = dict.fromkeys(SEVEN, 5) | {"imagenet_vit": 2, "fastmri": 3, "wmt": 3}
LAWA = {"averaging_horizon": (0.01,), "averaging_window": (20,)}
RATES = (0.25, 0.5, 1.0, 2.0, 4.0)  # times the point's learning rate
INTERVALS = (16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Experiment:
    """A grid: every combination of `values`, for one submission."""

    submission: str
    figure: str
    values: dict[str, tuple[float, ...]]


EXPERIMENTS = {
    "interval_x_window": Experiment(
        "lawa", "3, 10, 11", {"averaging_interval": INTERVALS, "averaging_window": (5, 10, 20, 40, 80)}
    ),
    "interval_x_decay": Experiment(
        "ema", "3, 10, 11", {"averaging_interval": (1, *INTERVALS), "averaging_decay": (0.5, 0.8, 0.9, 0.95, 0.99)}
    ),
    "learning_rate_nadamw": Experiment("nadamw", "4, 6", {"learning_rate": RATES}),
    "learning_rate_lawa": Experiment("lawa", "4, 6", {"learning_rate": RATES, **LAWA}),
    "learning_rate_ema": Experiment("ema", "4, 6", {"learning_rate": RATES, **LAWA}),
    "final_learning_rate_nadamw": Experiment("nadamw", "7b", {"final_lr_factor": (0.0, 0.5, 1.0)}),
    "final_learning_rate_lawa": Experiment("lawa", "7b", {"final_lr_factor": (0.0, 0.5, 1.0), **LAWA}),
    "schedule_fraction_nadamw": Experiment(
        "nadamw", "7a, 12", {"schedule_fraction": (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)}
    ),
}

LANGUAGE_MODEL = "finewebedu_lm_124m"
# Section 7 and Tables 3 and 4. The first of two settings is fastest to the target, the second has the best loss.
ADAMW = {"one_minus_beta1": 0.1, "beta2": 0.95, "epsilon": 1e-12, "warmup_factor": 0.1, "grad_clip": 0.1}
FASTEST = {"learning_rate": 0.01, **ADAMW, "weight_decay": 0.01, "final_lr_factor": 0.1}
BEST = {"learning_rate": 0.01, **ADAMW, "weight_decay": 0.1, "final_lr_factor": 0.0}
LM_INTERVALS = (1, 4, 16, 64, 256, 1024)
LM_EXPERIMENTS = {
    "grid_adamw": Experiment(
        "adamw", "Table 3",
        {
            "learning_rate": (0.03, 0.1, 0.3, 1.0, 3.0), "final_lr_factor": (0.0, 0.1), "warmup_factor": (0.01, 0.1),
            "weight_decay": (0.01, 0.1), "grad_clip": (0.01, 0.1),
        },
    ),
    "interval_x_window": Experiment(
        "adamw_lawa", "9, 13, 14", {"averaging_interval": LM_INTERVALS, "averaging_window": (2, 5, 10, 20, 50)}
    ),
    "interval_x_decay": Experiment(
        "adamw_ema", "9, 13, 14",
        {"averaging_interval": LM_INTERVALS, "averaging_decay": (0.1, 0.3, 0.6, 0.9, 0.99)},
    ),
}  # fmt: skip
# What `scripts.run --submission` takes for the language model; the averages are those that Appendix B advises.
LM_SUBMISSIONS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adamw_lawa": {"averaging_interval": 64, "averaging_window": 20},
    "adamw_ema": {"averaging_interval": 64, "averaging_decay": 0.9},
}


def grid(experiment: Experiment, point: dict[str, Any]) -> list[dict[str, Any]]:
    """All combinations, the last hyperparameter varying fastest."""
    points = []
    for combination in itertools.product(*experiment.values.values()):
        varied = dict(zip(experiment.values, combination, strict=True))
        if "learning_rate" in varied:
            varied["learning_rate"] *= point["learning_rate"]
        points.append({**point, **varied})
    return points


def spaces(root: Path) -> Iterator[tuple[Path, str]]:
    """Every file of tuning_search_spaces/paper and its contents, a point a line."""
    baseline = json.loads((root / "nadamw.json").read_text())
    for workload in SEVEN:
        for name, experiment in EXPERIMENTS.items():
            yield root / "paper" / workload / f"{name}.json", _text(grid(experiment, baseline[POINT[workload] - 1]))
    for name, experiment in LM_EXPERIMENTS.items():
        yield root / "paper" / LANGUAGE_MODEL / f"{name}.json", _text(grid(experiment, FASTEST))
    for name, averaging in LM_SUBMISSIONS.items():
        points = [{**point, **averaging} for point in (FASTEST, BEST)]
        yield root / "paper" / LANGUAGE_MODEL / f"{name}.json", _text(points)


def _text(points: list[dict[str, Any]]) -> str:
    return "[\n  " + ",\n  ".join(map(json.dumps, points)) + "\n]\n"


if __name__ == "__main__":  # python -m launching.paper
    for path, text in spaces(Path("tuning_search_spaces")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
