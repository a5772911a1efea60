"""Batch-norm statistics for averaged weights."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from weight_averaging.torch.model.selection import has_running_statistics, named_modules
from weight_averaging.torch.model.tensors import plain_tensors, writing

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """By name the modules that keep running statistics by a momentum: those of torch and others built like them."""
    return {n: m for n, m in named_modules(model) if has_running_statistics(m) and hasattr(m, "momentum")}


def named_statistics(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """All buffers of these modules: name -> (module, key)."""
    return {
        f"{name}.{key}" if name else key: (layer, key)
        for name, layer in batch_norms(model).items()
        for key, buffer in layer._buffers.items()
        if buffer is not None
    }


def keep_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Copies of them."""
    return {name: layer._buffers[key].clone() for name, (layer, key) in named_statistics(model).items()}  # type: ignore[union-attr]


def restore_statistics(model: nn.Module, kept: dict[str, Tensor], of: nn.Module | None = None) -> None:
    """Put copies back, all or those of one module."""
    for name, (layer, key) in named_statistics(model).items() if kept else ():
        if name in kept and of in (None, layer):
            buffer: Any = layer._buffers[key]
            with writing([buffer]):
                buffer.copy_(kept[name])


@plain_tensors
def recompute_batch_norm(model: nn.Module, forward_passes: Iterable[Callable[[], object]]) -> None:
    """Set the running statistics to those that training batches have under the weights now in the model.

    The statistics of averaged weights are not the average of the statistics (Izmailov et al. 2018, arXiv 1803.05407,
    section 3.2). They start from zero, and each use of a layer updates them as in training, r <- (1 - m) r + m batch.
    In the end the start is corrected for: r / (1 - (1 - m)^n) after n uses. Unlike `torch.optim.swa_utils.update_bn`
    this takes any way to call the model, and modules that are batch norm in all but name.

    Layers keep their statistics if the passes do not reach them, if their momentum is 0, and if they are frozen. A
    frozen layer is in evaluation mode while the model is in training mode. (With all of the model in evaluation mode
    there is no telling.)

    Args:
        model: gets into training mode for the passes, but for dropout layers of torch, which evaluations do without
            too. Every module gets back into its own after them.
        forward_passes: callables, each of which runs the model on one batch, without dropout of another make.
    Raises:
        ValueError: there is no forward pass.
        Anything that a pass raises: the statistics are then as before.
    """
    passes = list(forward_passes)
    if not passes:
        raise ValueError("recompute_batch_norm needs at least one forward pass")
    modes = {module: module.training for module in model.modules()}
    layers = batch_norms(model)
    kept = keep_statistics(model)
    frozen = {name for name, layer in layers.items() if model.training and not layer.training}
    uses = dict.fromkeys(layers, 0)

    def counting(name: str) -> Callable[..., None]:
        def count(layer: nn.Module, inputs: object) -> None:
            uses[name] += layer.training

        return count

    hooks = [
        layer.register_forward_pre_hook(counting(name))
        for name, layer in layers.items()
        if not isinstance(layer, torch.jit.ScriptModule)  # which takes none
    ]
    try:
        model.train()
        for module in model.modules():
            if isinstance(module, DROPOUT):
                module.eval()
        for name, layer in layers.items():
            layer.train(name not in frozen)
            for buffer in layer._buffers.values():
                if buffer is not None and name not in frozen:
                    with writing([buffer]):
                        buffer.zero_()
        for forward in passes:
            forward()
        for name, layer in layers.items():
            momentum: Any = layer.momentum
            count = _uses(layer, uses[name], len(passes))
            if name in frozen or not count or momentum == 0:
                restore_statistics(model, kept, layer)
            elif momentum is not None:  # None: torch's plain mean over the batches, which has no start
                for buffer in (layer._buffers["running_mean"], layer._buffers["running_var"]):
                    assert buffer is not None
                    with writing([buffer]):
                        buffer.div_(1 - (1 - float(momentum)) ** count)
    except BaseException:
        restore_statistics(model, kept)
        raise
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training


def _uses(layer: nn.Module, counted: int, passes: int) -> int:
    """How often a layer has updated its statistics, which have begun at zero."""
    # Which instance norm has and does not count.
    batches = dict(layer._buffers.items()).get("num_batches_tracked")
    moved = any(bool(buffer.any()) for buffer in layer._buffers.values() if buffer is not None)
    # Compiled modules do not call hooks that come later.
    return (0 if batches is None else int(batches)) or counted or (passes if moved else 0)
