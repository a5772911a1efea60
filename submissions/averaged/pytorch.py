"""Around a submission in PyTorch: an averager beside the objects of its optimizer state."""

import functools
import inspect
from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from absl import logging
from torch import nn

from weight_averaging.torch import Averager

from ..recipe.averaging import Averaging, ema, growing, lawa
from ..recipe.pytorch.averagers import averager_of
from . import base

__all__ = ["averaged", "ema", "growing", "lawa"]

KEY = "weight_averaging"  # in the dict that the harness saves by its values' state_dict()
ELEMENTS = 8  # of each parameter: a step of an optimizer changes nearly all of them


class Around:
    """See `base.Around`. One averager for the trial, which holds the model that it was given at the start."""

    def __init__(self, averaging: Averaging, hyperparameters: Any, step_hint: int) -> None:
        self._settings = averaging, hyperparameters, step_hint
        self._first: list[float] | None = None  # of the first snapshot
        self._looks = 2  # that are left

    def init(self, state: Any, model_params: nn.Module, model_state: Any) -> dict[str, Any]:
        del model_state
        if not isinstance(state, MutableMapping):
            raise ValueError(f"the optimizer state of a submission in PyTorch is a dict, not a {type(state).__name__}")
        averaging, hyperparameters, step_hint = self._settings
        return {**state, KEY: averager_of(averaging, model_params, hyperparameters, step_hint)}

    def opened(self, state: dict[str, Any], params: nn.Module, model_state: Any) -> Any:
        self._averager(state).swap_out()
        return state, params, model_state

    def theirs(self, state: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in state.items() if name != KEY}

    def closed(self, state: dict[str, Any], theirs: Any, params: nn.Module, model_state: Any, step: int | None) -> Any:
        averager = self._averager(state)
        if step is not None and averager.update(step):
            self._look(params)
        return {**theirs, KEY: averager}, params, model_state

    def averaged(self, state: dict[str, Any], params: nn.Module, model_state: Any) -> Any:
        self._averager(state).swap_in()
        return state, params, model_state

    @torch.no_grad()
    def fingerprint(self, params: nn.Module) -> list[float]:
        some = [
            p.detach().reshape(-1)[:: max(1, p.numel() // ELEMENTS)][:ELEMENTS].float() for p in params.parameters()
        ]
        return torch.cat([part.to(some[0].device) for part in some]).tolist()  # type: ignore[no-any-return]

    def watched(self, workload: Any, params: nn.Module, train: Callable[[], Any]) -> tuple[Any, bool]:
        before, model_fn = self.fingerprint(params), workload.model_fn
        seen: list[list[float]] = []
        signature = inspect.signature(model_fn)

        def watching(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            if not seen and given["mode"].name == "TRAIN" and isinstance(given["params"], nn.Module):
                seen.append(self.fingerprint(given["params"]))
            return model_fn(*args, **kwargs)

        own = "model_fn" in vars(workload)
        workload.model_fn = watching
        try:
            result = train()
        finally:
            if own:
                workload.model_fn = model_fn
            else:
                del workload.model_fn
        return result, bool(seen) and not base.same(before, seen[0])

    def _averager(self, state: dict[str, Any]) -> Averager:
        return state[KEY]  # type: ignore[no-any-return]

    def _look(self, params: nn.Module) -> None:
        """Warn of a base that has not trained between the first two snapshots: then calls are no updates.

        Only there: to look waits for the device.
        """
        if not self._looks:
            return
        self._looks -= 1
        now = self.fingerprint(params)
        if now == self._first:
            logging.warning(
                "the weights have not changed between two snapshots: of a base that accumulates say calls_per_update="
            )
        self._first = now


averaged = functools.partial(base.averaged, Around)
