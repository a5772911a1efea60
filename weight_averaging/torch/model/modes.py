"""What layers, torch and bitsandbytes make of weights and keep: it is made anew when those change."""

import contextlib
import functools
import inspect
import logging
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

logger = logging.getLogger("weight_averaging")


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
    """Weights get other values in the block. Afterwards nothing that was made of those before is used.

    Modules in evaluation mode with a `train` of their own leave it meanwhile: LeViT, TinyViT and EfficientFormer gather
    their attention biases in evaluation mode and keep them until `train()`. Modes are as before afterwards.
    """
    of_all = [*modules]
    own = [module for module in of_all if not module.training and _has_own_train(type(module))]
    modes = [(module, module.training) for module in of_all] if own else []
    try:
        for module in own:
            module.train()
        yield
    finally:
        _forget(of_all)
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


@functools.cache
def _warn_of_frozen_weights() -> None:
    logger.warning(
        "torch._inductor.config.freezing is on: a compiled model goes on with the weights of its first evaluation, so "
        "that neither the average nor later weights are seen; turn it off, or evaluate the model that is not compiled"
    )


def _forget(modules: Iterable[nn.Module]) -> None:
    """Drop what is remembered of weights by value.

    That is torch's casts in an open autocast region, its cached parametrisations, and the copies of bitsandbytes:
    `Linear8bitLt(has_fp16_weights=True)` quantises its weights in a training pass, and evaluates those then.
    """
    # Importing its settings takes seconds: where nothing has been compiled they are not there.
    if getattr(sys.modules.get("torch._inductor.config"), "freezing", False):
        _warn_of_frozen_weights()
    torch.clear_autocast_cache()
    cached = getattr(torch.nn.utils.parametrize, "_cache", None)
    if cached:
        cached.clear()
    for module in modules:
        state: Any = module.__dict__.get("state")
        if getattr(state, "has_fp16_weights", None) is True and hasattr(state, "reset_grads"):
            state.reset_grads()  # bitsandbytes' name: it drops the copies
