"""The model's checkpoint loaded after the averager's, both taken while the average was in the model."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from weight_averaging.torch.model.batch_norm import named_statistics, restore_statistics
from weight_averaging.torch.model.tensors import plain_tensors, writing
from weight_averaging.torch.model.weights import LiveWeights

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def checksums(tensors: list[Tensor]) -> list[int]:
    """Of each tensor the sum of its elements' bits as integers, which does not depend on the order of summation."""
    if not tensors:
        return []
    bits = [tensor.contiguous().view(_INTEGERS[tensor.element_size()]) for tensor in tensors]
    return [int(total) for total in torch.stack([b.sum(dtype=torch.int64).cpu() for b in bits]).tolist()]


class LoadGuard:
    """Between the loading of a state that was saved while swapped and the next update.

    The model's checkpoint of that moment holds the average. Loaded after the averager's state it would undo what that
    did, in silence. The state has the checksums of what the model held; a module that has just been loaded and holds
    that gets its raw weights back.

    Attributes:
        at_end: what ends the watch; empty where there is none.
    """

    def __init__(self) -> None:
        self.at_end: list[Callable[[], object]] = []

    def begin(
        self, weights: LiveWeights, model: nn.Module, raw: list[Tensor], sums: list[int], statistics: dict[str, Tensor]
    ) -> None:
        """Args: `raw` and `sums` in the order of the tensors of `weights`; `statistics` of batch norm, by name."""
        hook = _Hook(weights, model, [t.clone() for t in raw], sums, {n: t.clone() for n, t in statistics.items()})
        scripted = [module for module in hook.modules if isinstance(module, torch.jit.ScriptModule)]  # take no hooks
        plain = hook.modules.difference(scripted)
        self.at_end = [module.register_load_state_dict_post_hook(hook).remove for module in plain]
        self.at_end += [partial(hook, module, None) for module in scripted]

    def end(self) -> None:
        """What it watched for has happened or does not any more: training goes on, or the average comes in."""
        while self.at_end:
            self.at_end.pop()()


class _Hook:
    def __init__(
        self, weights: LiveWeights, model: nn.Module, raw: list[Tensor], sums: list[int], statistics: dict[str, Tensor]
    ) -> None:
        self._weights, self._model, self._raw, self._sums, self._statistics = weights, model, raw, sums, statistics
        layers = [layer for name, (layer, _) in named_statistics(model).items() if name in statistics]
        self.modules = {*(entry.module for entry in weights.entries), *layers}

    @plain_tensors
    def __call__(self, module: nn.Module, incompatible: Any) -> None:
        if module not in self.modules:  # of a copy of the model
            return
        tensors = self._weights.tensors()
        mine = [index for index, entry in enumerate(self._weights.entries) if entry.module is module]
        if checksums([tensors[index] for index in mine]) != [self._sums[index] for index in mine]:
            return  # loaded with something else, which is then meant
        with writing(tensors):
            for index in mine:
                tensors[index].copy_(self._raw[index])
        restore_statistics(self._model, self._statistics, module)

    def __reduce__(self) -> tuple[Any, ...]:
        """A model that is copied or sent elsewhere leaves this behind."""
        return _Nothing, ()


class _Nothing:
    def __call__(self, module: nn.Module, incompatible: Any) -> None:
        return None
