"""What a submission evaluates, as an average that can be made of snapshots instead."""

from typing import Any

from weight_averaging.averages import EMA, LAWA, Average, Merge

from .averaging import ema, lawa

MERGE = ("averaging_shape", "averaging_share", "averaging_interval")


def average_of(submission: str, hyperparameters: Any, step_hint: int) -> Average:
    """What `submission` evaluates with these hyperparameters, by the end of its name: lawa, ema or merge.

    Raises:
        ValueError: in one line, for hyperparameters that it cannot take.
    """
    kind = submission.removesuffix("_no_decay").removesuffix("_wsd").rpartition("_")[2]
    if kind == "merge":
        given = {name for name in dir(hyperparameters) if name.startswith("averaging_")}
        if given != set(MERGE):
            raise ValueError(f"a merge takes {', '.join(MERGE)}; this has {', '.join(sorted(given)) or 'none of them'}")
        shape, share, interval = (getattr(hyperparameters, name) for name in MERGE)
        return Merge(shape=shape, share=share, interval=interval)
    if kind == "lawa":
        settings = lawa.settings(hyperparameters, step_hint)
        return LAWA(window=settings["window"], interval=settings["interval"])
    settings = ema.settings(hyperparameters, step_hint)
    return EMA(decay=settings["decay"], interval=settings["interval"])
