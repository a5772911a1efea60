"""Modules with a `train` of their own: what they make of weights in `eval()` is made anew when those change."""

import contextlib
import inspect
from collections.abc import Iterable, Iterator
from typing import Any

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


@contextlib.contextmanager
def weights_change(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Weights get other values in the block: modules in evaluation mode with a `train` of their own leave it meanwhile.

    LeViT, TinyViT and EfficientFormer gather their attention biases in evaluation mode and keep them until `train()`:
    without this they would evaluate those of other weights. Modes are as before afterwards.
    """
    of_all = [*modules]
    own = [module for module in of_all if not module.training and _has_own_train(type(module))]
    if not own:
        yield
        return
    modes = [(module, module.training) for module in of_all]
    for module in own:
        module.train()
    try:
        yield
    finally:
        for module in own:
            module.eval()
        for module, training in modes:
            module.training = training


def _has_own_train(kind: type[nn.Module]) -> bool:
    """One that sets the mode: not torch's, which keeps nothing, nor one that trains a model (ultralytics' YOLO)."""
    train: Any = kind.train
    if train is nn.Module.train or not inspect.isfunction(train) or train.__module__.startswith("torch."):
        return False
    return [*inspect.signature(train).parameters][1:2] == ["mode"]
