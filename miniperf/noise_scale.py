"""How noisy are a workload's gradients? The simple noise scale of McCandlish et al. 2018 (arXiv 1812.06162)."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from miniperf import random_utils, spec


def simple_noise_scale(gradients: Iterable[Tensor], batch_size: int) -> float:
    """B_simple = tr(Sigma) / |G|^2: far below it batches are mostly noise, far above it larger ones are wasted.

    The unbiased estimates of both parts from gradients of two batch sizes (Appendix A.1 there, eqs. A.2 and A.3): that
    of the batches, and that of all of them together.

    Args:
        gradients: two or more, each [weights], the mean over the examples of one batch; batches are independent.
        batch_size: examples in each batch.

    Returns:
        In examples; infinite where no mean gradient shows above the noise.
    """
    total: Tensor | None = None
    squares = []
    for gradient in gradients:
        gradient = gradient.double()
        squares.append(float(gradient @ gradient))
        total = gradient if total is None else total + gradient
    if total is None or len(squares) < 2:
        raise ValueError(f"the noise scale needs two gradients or more, not {len(squares)}")
    small, big = batch_size, batch_size * len(squares)
    of_small, of_big = sum(squares) / len(squares), float(total @ total) / len(squares) ** 2
    mean_square = (big * of_big - small * of_small) / (big - small)
    variance = (of_small - of_big) / (1 / small - 1 / big)
    return variance / mean_square if mean_square > 0 else math.inf


def workload_gradients(
    workload: Any, model: nn.Module, batches: Iterable[Any], dropout_rate: float
) -> Iterable[Tensor]:
    """The gradient of the mean training loss on each batch, as one vector; batch norm's statistics stay."""
    key = random_utils.key_from_seed(0)
    loss_of: Callable[..., dict[str, Tensor]] = workload.loss_fn
    for batch in batches:
        key, step_key = random_utils.split(key)
        logits, _ = workload.model_fn(
            model, batch, None, spec.ForwardPassMode.TRAIN, step_key, False, dropout_rate=dropout_rate
        )
        loss = loss_of(batch["targets"], logits, batch["weights"])
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(loss["summed"] / loss["n_valid_examples"], parameters, allow_unused=True)
        yield torch.cat([g.flatten() for g in gradients if g is not None])
