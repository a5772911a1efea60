"""Layers that merge weights in `eval()`: the average comes and goes while they are in training mode."""

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def training_mode(model: nn.Module, then_eval: bool) -> Iterator[None]:
    """A model with a `train` of its own somewhere is in training mode for the block.

    Trainers call `eval()` before an evaluation. A layer that merges low-rank weights there (loralib) would merge those
    of training into the average, or those of the average into the raw weights. Other models are left alone.

    Args:
        then_eval: whether `eval()` is called after the block. Else the modules only show the modes they had: Lightning
            goes on to train without calling `train()`, and would train on merged weights.
    """
    modes = {module: module.training for module in model.modules()}
    if model.training or all(type(module).train is nn.Module.train for module in modes):
        yield
        return
    model.train()
    try:
        yield
    finally:
        if then_eval:
            model.eval()
        for module, training in modes.items():
            module.training = training
