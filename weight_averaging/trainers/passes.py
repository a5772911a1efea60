"""Passes over data beside a trainer's own, which training is not to notice."""

import contextlib
import copy
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from weight_averaging.torch import recompute_batch_norm
from weight_averaging.torch.model.batch_norm import batch_norms
from weight_averaging.torch.model.selection import STATISTICS


@contextlib.contextmanager
def kept_random_numbers() -> Iterator[None]:
    """Random numbers drawn in the block, of torch, Python and NumPy, are not missed after it."""
    numpy: Any = sys.modules.get("numpy")
    python, of_numpy = random.getstate(), numpy.random.get_state() if numpy else None
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            if numpy:
                numpy.random.set_state(of_numpy)


@contextlib.contextmanager
def apart(loader: Any) -> Iterator[Any]:
    """A loader of the same data, to go through while the other is being gone through, which does not notice.

    Persistent workers are those of one pass: a second one over the same loader would start the first anew.
    """
    own = copy.copy(loader)
    if hasattr(own, "_iterator"):
        own._iterator = None
    with kept_order(loader):
        yield own


@contextlib.contextmanager
def kept_order(loader: Any) -> Iterator[None]:
    """Whoever goes through a loader after the block has the data in the order that he would have had without it.

    Samplers count epochs and have generators of random numbers, and accelerate's loaders count passes: they are as
    before after the block.
    """
    parts: list[Any] = [loader]
    for part in parts:  # a batch sampler has a sampler, or another batch sampler
        inner = (getattr(part, key, None) for key in ("sampler", "batch_sampler"))
        parts += [found for found in inner if found is not None and all(found is not other for other in parts)]
    found = [getattr(part, "generator", None) for part in parts]
    generators = [(generator, generator.get_state()) for generator in found if isinstance(generator, torch.Generator)]
    samplers = [(part, dict(vars(part))) for part in parts[1:] if hasattr(part, "__dict__")]
    passes = getattr(loader, "__dict__", {}).get("iteration")
    try:
        yield
    finally:
        for generator, state in generators:
            generator.set_state(state)
        for sampler, attributes in samplers:
            vars(sampler).update(attributes)
        if passes is not None:
            loader.iteration = passes


def recompute(model: nn.Module, batches: Iterable[Any], number: int, forward: Callable[[Any], object]) -> None:
    """Bring batch-norm statistics up to date on some batches; of several ranks the mean, and collective.

    Args:
        number: of batches, at most.
        forward: runs the model on one.
    Raises:
        RuntimeError: there is no batch.
    """
    iterator, ran = iter(batches), []
    with contextlib.suppress(TypeError, NotImplementedError):  # of data without a length
        number = min(number, len(batches))  # type: ignore[arg-type]

    def one() -> None:
        batch = next(iterator, None)
        if batch is not None:
            forward(batch)
            ran.append(True)

    recompute_batch_norm(model, [one] * max(1, number))
    if not ran:
        raise RuntimeError("there is no batch of training to recompute batch-norm statistics from")
    if dist.is_available() and dist.is_initialized() and (ranks := dist.get_world_size()) > 1:
        for layer in batch_norms(model).values():
            for name in STATISTICS:
                statistic: Any = layer._buffers[name]
                with torch.no_grad():
                    dist.all_reduce(statistic)
                    statistic /= ranks
