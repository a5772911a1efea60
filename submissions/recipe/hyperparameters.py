"""Which hyperparameters the submissions take, and what each may be: checked before any training."""

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

Rule = tuple[Callable[[float], bool], str]  # whether a number may be its value, and that in words

# What every submission takes, whatever its optimizer: the schedule's, and what may be left out.
REQUIRED: dict[str, Rule] = {"warmup_factor": (lambda x: 0 <= x < 1, "in [0, 1), a share of step_hint")}
OPTIONAL: dict[str, Rule] = {
    "dropout_rate": (lambda x: 0 <= x < 1, "in [0, 1)"),
    "label_smoothing": (lambda x: 0 <= x < 1, "in [0, 1)"),
    "grad_clip": (lambda x: x > 0, "> 0"),
    "final_lr_factor": (lambda x: 0 <= x <= 1, "in [0, 1], a share of learning_rate"),
    "schedule_fraction": (lambda x: 0 < x <= 1, "in (0, 1], a share of step_hint"),
}

# Of one schedule alone, by its name.
OF_SCHEDULE: dict[str, dict[str, Rule]] = {
    "warmup_stable_decay": {"decay_share": (lambda x: 0 < x <= 1, "in (0, 1], a share of the schedule")},
}


def check(
    hyperparameters: Any, required: Mapping[str, Rule], optional: Mapping[str, Rule], also_known: set[str]
) -> None:
    """A ValueError in one line for a missing, unknown or impossible hyperparameter.

    Args:
        hyperparameters: the namedtuple of one tuning trial.
        required, optional: the optimizer's, beside REQUIRED and OPTIONAL.
        also_known: further names that the submission takes and checks itself.
    """
    if not hyperparameters:  # None, or the {} of the harness's reference test
        raise ValueError("no hyperparameters: run with --tuning_ruleset=external and a --tuning_search_space")
    values = hyperparameters._asdict()
    needed = {**required, **REQUIRED}
    missing = [name for name in needed if name not in values]
    if missing:
        raise ValueError(f"the hyperparameter {', '.join(missing)} is missing; there are {', '.join(values)}")
    known = {**needed, **optional, **OPTIONAL}
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
