"""Which hyperparameters the submissions take, and what each may be: checked before any training."""

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

REQUIRED: dict[str, tuple[Callable[[float], bool], str]] = {
    "learning_rate": (lambda x: x > 0, "> 0"),
    "one_minus_beta1": (lambda x: 0 < x <= 1, "in (0, 1]"),
    "beta2": (lambda x: 0 <= x < 1, "in [0, 1)"),
    "weight_decay": (lambda x: x >= 0, ">= 0"),
    "warmup_factor": (lambda x: 0 <= x < 1, "in [0, 1), a share of step_hint"),
}
OPTIONAL: dict[str, tuple[Callable[[float], bool], str]] = {
    "dropout_rate": (lambda x: 0 <= x < 1, "in [0, 1)"),
    "label_smoothing": (lambda x: 0 <= x < 1, "in [0, 1)"),
    "grad_clip": (lambda x: x > 0, "> 0"),
    "final_lr_factor": (lambda x: 0 <= x <= 1, "in [0, 1], a share of learning_rate"),
    "schedule_fraction": (lambda x: 0 < x <= 1, "in (0, 1], a share of step_hint"),
}


def check(hyperparameters: Any, also_known: set[str]) -> None:
    """A ValueError in one line for a missing, unknown or impossible hyperparameter.

    Args:
        hyperparameters: the namedtuple of one tuning trial.
        also_known: names beyond REQUIRED and OPTIONAL that the submission takes and checks itself.
    """
    if hyperparameters is None:
        raise ValueError("no hyperparameters: run with --tuning_ruleset=external and a --tuning_search_space")
    values = hyperparameters._asdict()
    missing = [name for name in REQUIRED if name not in values]
    if missing:
        raise ValueError(f"the hyperparameter {', '.join(missing)} is missing; there are {', '.join(values)}")
    known = {**REQUIRED, **OPTIONAL}
    unknown = [name for name in values if name not in known and name not in also_known]
    if unknown:
        taken = ", ".join([*known, *sorted(also_known)])
        raise ValueError(f"the submission takes no hyperparameter {', '.join(unknown)}; it takes {taken}")
    for name, value in values.items():
        if name in known:
            allowed, words = known[name]
            number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
            if not number or not allowed(float(value)):
                raise ValueError(f"the hyperparameter {name} must be a number {words}, not {value!r}")
