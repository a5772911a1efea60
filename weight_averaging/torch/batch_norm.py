"""Batch-norm statistics for averaged weights."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """The modules that keep running statistics, those of torch and others built like them."""
    names = ("running_mean", "running_var")
    return [m for m in model.modules() if all(isinstance(getattr(m, name, None), Tensor) for name in names)]


@torch.no_grad()
def recompute_batch_norm(model: nn.Module, forward_passes: Iterable[Callable[[], object]]) -> None:
    """Set the running statistics to those that training batches have under the weights now in the model.

    The statistics of averaged weights are not the average of the statistics (Izmailov et al. 2018, arXiv 1803.05407,
    section 3.2). They start from zero, each forward pass updates them as in training, r <- (1 - m) r + m batch, and in
    the end the start is corrected for: r / (1 - (1 - m)^K). Unlike `torch.optim.swa_utils.update_bn` this takes any
    way to call the model, and modules that are batch norm in all but name.

    Args:
        model: gets into training mode for the passes, and out of it again.
        forward_passes: K callables, each of which runs the model on one batch, without dropout.
    Raises:
        ValueError: there is no forward pass.
    """
    passes = list(forward_passes)
    if not passes:
        raise ValueError("recompute_batch_norm needs at least one forward pass")
    layers = batch_norms(model)
    modes = {module: module.training for module in model.modules()}
    for layer in layers:
        layer.running_mean.zero_()  # type: ignore[operator,union-attr]
        layer.running_var.zero_()  # type: ignore[operator,union-attr]
        if isinstance(getattr(layer, "num_batches_tracked", None), Tensor):
            layer.num_batches_tracked.zero_()  # type: ignore[operator,union-attr]
    model.train()
    for forward in passes:
        forward()
    for layer in layers:
        momentum = layer.momentum
        if momentum is not None:  # None: torch's plain mean over the batches, which has no start
            correction = 1 - (1 - float(momentum)) ** len(passes)  # type: ignore[arg-type]
            layer.running_mean.div_(correction)  # type: ignore[operator,union-attr]
            layer.running_var.div_(correction)  # type: ignore[operator,union-attr]
    for module, training in modes.items():
        module.training = training
