"""What classes derived from Hugging Face's Trainer keep beside it: TRL's, sentence-transformers' and others."""

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import Trainer

from weight_averaging.torch import Averager

# Of TRL and of sentence-transformers, each {"train": ..., "eval": ...}.
GATHERED = ("_metrics", "accum_loss_components")


@contextlib.contextmanager
def gathered_apart(trainer: Trainer) -> Iterator[dict[str, float]]:
    """What an evaluation gathers for the log, apart from what the next one gathers.

    These classes gather rewards, entropies or parts of the loss in `compute_loss`, and log their means in `log`. Left
    there until the log of the next pass, those of two passes would become one mean.

    Yields:
        The means, by name, once the block has ended without an exception. Of several ranks collective.
    """
    found = [getattr(trainer, name, None) for name in GATHERED]
    held: list[Any] = [one for one in found if isinstance(one, dict) and isinstance(one.get("eval"), dict)]
    before = [gathered["eval"] for gathered in held]
    for gathered in held:
        gathered["eval"] = copy.copy(gathered["eval"])
        gathered["eval"].clear()
    means: dict[str, float] = {}
    try:
        yield means
        for gathered in held:
            means.update(_means(trainer, gathered["eval"]))
    finally:
        for gathered, kept in zip(held, before, strict=True):
            gathered["eval"] = kept


def _means(trainer: Trainer, values: dict[str, Any]) -> dict[str, float]:
    """Of lists of numbers, which are those of all ranks; or of sums over steps, each rank having its own."""
    if "steps" not in values:
        finite = {name: [one for one in found if not math.isnan(one)] for name, found in values.items()}
        return {name: sum(found) / len(found) for name, found in finite.items() if found}
    sums = {name: trainer.accelerator.gather(value).sum().item() for name, value in values.items()}
    steps = sums.pop("steps")
    return {name: total / steps for name, total in sums.items()}


@contextlib.contextmanager
def engine_loads_anew(trainer: Trainer) -> Iterator[None]:
    """An engine that generates for the trainer (TRL's vLLM) loads the weights anew within the block, and after it.

    It has a copy of the weights, and loads them once a step. The average and the raw weights are of one step. It would
    evaluate the weights of training, or generate what is trained on by the average.
    """
    _forget_load(trainer)
    try:
        yield
    finally:
        _forget_load(trainer)


def _forget_load(trainer: Any) -> None:
    if hasattr(trainer, "_last_loaded_step"):
        trainer._last_loaded_step = -1


def trained_outside(trainer: Trainer, model: nn.Module, averager: Averager) -> list[str]:
    """Names of the parameters that the optimizer trains, and that neither the model has nor the average.

    Losses of sentence-transformers may have some. Sharded models and DeepSpeed have parameters of their own kind in
    the optimizer: of those it is not asked.
    """
    optimizer: Any = trainer.optimizer
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or not hasattr(optimizer, "param_groups"):
        return []
    known = {id(parameter) for parameter in model.parameters()} | averager._weights.index_by_id().keys()
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    other = {id(p) for p in trained if isinstance(p, nn.Parameter) and p.requires_grad and id(p) not in known}
    names = {}
    for held, value in vars(trainer).items() if other else ():
        modules = value if isinstance(value, Mapping) else {"": value}
        for key, module in modules.items():
            if isinstance(module, nn.Module):
                start = f"{held}.{key}" if key else held
                names.update({id(p): f"{start}.{name}" for name, p in module.named_parameters() if id(p) in other})
    return sorted(names.get(one, "a parameter") for one in other)
