"""The runs as rows of the report's page: what each reached, its settings and its curve."""

import math
import re
import shlex
from typing import Any

import numpy as np
import pandas as pd

# What the official runner is told; its flags_K.json holds absl's and the libraries' flags too.
_FLAGS = (
    "framework", "workload", "submission_path", "tuning_ruleset", "tuning_search_space", "num_tuning_trials",
    "hparam_start_index", "hparam_end_index", "data_dir", "imagenet_v2_data_dir", "librispeech_tokenizer_vocab_path",
    "experiment_dir", "experiment_name", "rng_seed", "max_global_steps", "torch_compile", "save_checkpoints",
    "save_intermediate_checkpoints", "resume_last_run", "overwrite",
)  # fmt: skip
_PASSING = re.compile(r"(gpu\.(\d+|avg)|mem|net|cpu\.(util|freq))\.")  # of the meta data, true at one moment
_POINTS = 120  # of a run's curve: more cannot be told apart


def rows(trials: pd.DataFrame, best: pd.DataFrame, of_runs: dict[str, pd.DataFrame], unit: str) -> list[dict[str, Any]]:
    """One per run.

    Args:
        trials, best: of `Measured.trials` and `to_target.studies`.
        of_runs: of `Measured.curves`.
        unit: of the curves, "steps" or "seconds".
    """
    picked = set(zip(best["submission"], best["folder"]))
    found = []
    for row in trials.sort_values(["workload", "submission", "study", "trial"]).to_dict("records"):
        curve = of_runs[row["folder"]]
        curve = curve.iloc[np.unique(np.linspace(0, len(curve) - 1, min(_POINTS, len(curve))).astype(int))]
        meta = dict(_flat(row["meta"]))
        command = meta.pop("command", None) or _command(row["flags"])
        found.append(
            {
                **{key: row[key] for key in ("submission", "workload", "framework", "study", "trial", "folder")},
                "best_of_study": (row["submission"], row["folder"]) in picked,
                "reached": bool(row["reached"]),
                **{
                    key: finite(row[key]) for key in ("steps", "seconds", "last_steps", "last_seconds", "best", "final")
                },
                "evaluations": int(row["count"]),
                "seed": meta.pop("rng_seed", row["flags"].get("rng_seed")),
                "hparams": {key: _shown(value) for key, value in row["hparams"].items()},
                "meta": {key: _shown(value) for key, value in meta.items() if not _PASSING.match(key)},
                "command": command,
                "x": [finite(value) for value in curve[unit]],
                "y": [finite(value) for value in curve["value"]],
            }
        )
    return found


def _command(flags: dict[str, Any]) -> str | None:
    """The official runner's command line, as far as flags_K.json tells."""
    given = [f"--{key}={flags[key]}" for key in _FLAGS if flags.get(key) not in (None, "", False)]
    return shlex.join(["python", "-m", "submission_runner", *given]) if given else None


def _flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in tree.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return found


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def finite(value: float) -> float | None:
    """Six digits; None (JSON knows neither NaN nor infinity) for what is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
