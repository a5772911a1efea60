"""What a submission evaluates, as an average that can be made of snapshots instead."""

from importlib import import_module
from typing import Any

from weight_averaging.averages import Average

from .averaging import merge


def average_of(submission: str, hyperparameters: Any, step_hint: int) -> Average:
    """What `submission` evaluates with these hyperparameters, as its recipe says.

    Raises:
        ValueError: in one line, for hyperparameters that it cannot take.
    """
    if submission == "merge_no_decay":  # made of snapshots alone: there is no submission of this name
        return merge.describe(hyperparameters, step_hint)
    described: Average = import_module(f"submissions.pytorch.{submission}.submission").recipe.averages.describe(
        hyperparameters, step_hint
    )
    return described
