"""Loss and gradients of one update, over parts of the batch where it does not go through the model at once."""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ...api import spec
from .distributed import USE_PYTORCH_DDP


def backward(
    workload: Any,
    model: nn.Module,
    batch: Mapping[str, Any],
    model_state: Any,
    rng: Any,
    label_smoothing: float,
    options: Mapping[str, Any],
) -> tuple[Tensor, Any]:
    """Add the gradients of the mean loss over the valid examples of all ranks' batches.

    A workload may say in `micro_batch_size` how many of a rank's examples go through the model at a time; AlgoPerf's
    own do not, their batches go whole. Gradients of parts are added up and exchanged between ranks with the last one.

    Args:
        model: its gradients are None or zero.
        batch: of this rank; where it is divided, tensors [batch, ...] or None by name.
        options: further ones of `model_fn`.
    Returns:
        The loss, a scalar without a gradient, and the new model state.
    """
    parts = list(micro_batches(batch, getattr(workload, "micro_batch_size", None)))
    ranks = dist.get_world_size() if USE_PYTORCH_DDP else 1
    sums: list[Tensor] = []
    counts: list[Tensor] = []
    for number, part in enumerate(parts):
        with nullcontext() if number == len(parts) - 1 else _unsynchronised(model):
            logits, model_state = workload.model_fn(
                model,
                part,
                model_state,
                spec.ForwardPassMode.TRAIN,
                _key(rng, number),
                update_batch_norm=True,
                **options,
            )
            loss_dict = workload.loss_fn(
                label_batch=part["targets"],
                logits_batch=logits,
                mask_batch=part.get("weights"),
                label_smoothing=label_smoothing,
            )
            summed_loss = loss_dict["summed"]
            sums.append(summed_loss.detach())
            counts.append(torch.as_tensor(loss_dict["n_valid_examples"], device=summed_loss.device))
            if number == 0:  # how many are valid in all is known only after the last part
                unit = _at_least_one(_of_all_ranks(counts[0]))
            (summed_loss / unit * ranks).backward()  # of the ranks' gradients DDP takes the mean
            del logits, loss_dict, summed_loss  # the graph of one part at a time
    total = unit
    if len(parts) > 1:
        total = _at_least_one(_of_all_ranks(torch.stack(counts).sum()))
        torch._foreach_mul_([p.grad for p in model.parameters() if p.grad is not None], unit / total)
    return _of_all_ranks(torch.stack(sums).sum()) / total, model_state


def micro_batches(batch: Mapping[str, Any], size: int | None) -> Iterator[Mapping[str, Any]]:
    """The batch in parts of `size` examples, the last one maybe smaller; None: as it is."""
    if size is None:
        yield batch
        return
    for start in range(0, len(batch["targets"]), size):
        yield {name: value if value is None else value[start : start + size] for name, value in batch.items()}


def _at_least_one(count: Tensor) -> Tensor:
    """What to divide by: of no valid example the loss and the gradients are 0, not 0 / 0."""
    return torch.where(count > 0, count, torch.ones_like(count))


def _of_all_ranks(value: Tensor) -> Tensor:
    if USE_PYTORCH_DDP:
        value = value.clone()
        dist.all_reduce(value)
    return value


def _unsynchronised(model: nn.Module) -> Any:
    inner = getattr(model, "_orig_mod", model)  # torch.compile goes around DDP
    return inner.no_sync() if isinstance(inner, DistributedDataParallel) else nullcontext()


def _key(rng: Any, number: int) -> Any:
    """That of a part, so that no two parts drop out alike; the first part's is the update's."""
    return rng if number == 0 else [int(rng[0]) + number, *rng[1:]]
