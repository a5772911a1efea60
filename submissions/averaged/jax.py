"""Around a submission in JAX: its pytree and ours in one, which the harness saves, and its function beside it."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ..recipe.averaging import Averaging, ema, growing, lawa
from ..recipe.jax.averagers import WeightsAverager
from ..recipe.jax.resuming import shapes, unstacked
from ..recipe.jax.training import State
from . import base

__all__ = ["averaged", "ema", "growing", "lawa"]

ELEMENTS = 8  # of each parameter


@dataclass
class Beside:
    """What the harness hands along with the state and does not save.

    Attributes:
        function: the second part of the base's own state, in a tuple; empty if it is no pair.
        shapes: of state, parameters and model state; None once they have been compared.
    """

    function: tuple[Any, ...]
    averager: WeightsAverager
    shapes: dict[str, tuple[int, ...]] | None


class Around:
    """See `base.Around`."""

    def __init__(self, averaging: Averaging, hyperparameters: Any, step_hint: int) -> None:
        self._settings = averaging, hyperparameters, step_hint

    def init(self, state: Any, model_params: Any, model_state: Any) -> tuple[State, Beside]:
        is_pair = type(state) is tuple and len(state) == 2
        tree, function = (state[0], state[1:]) if is_pair else (state, ())
        averager = WeightsAverager(*self._settings, model_params, model_state)
        whole = State(tree, *averager.init(model_params, model_state))
        return whole, Beside(function, averager, shapes((whole, model_params, model_state)))

    def opened(self, state: tuple[State, Beside], params: Any, model_state: Any) -> Any:
        whole, beside = state
        if beside.shapes is not None:
            whole, params, model_state = unstacked((whole, params, model_state), beside.shapes)
            whole, beside.shapes = beside.averager.restored(whole), None
        whole, params, model_state = beside.averager.swap_out(whole, params, model_state)
        return (whole, beside), params, model_state

    def theirs(self, state: tuple[State, Beside]) -> Any:
        whole, beside = state
        return (whole.optimizer, *beside.function) if beside.function else whole.optimizer

    def closed(
        self, state: tuple[State, Beside], theirs: Any, params: Any, model_state: Any, step: int | None
    ) -> tuple[tuple[State, Beside], Any, Any]:
        whole, beside = state
        if beside.function:
            tree, *function = theirs
            beside.function = tuple(function)
        else:
            tree = theirs
        whole = whole._replace(optimizer=tree)
        if step is not None:
            whole = beside.averager.update(whole, params, model_state, step)
        return (whole, beside), params, model_state

    def averaged(self, state: tuple[State, Beside], params: Any, model_state: Any) -> Any:
        whole, beside = state
        whole, params, model_state = beside.averager.swap_in(whole, params, model_state)
        jax.block_until_ready((whole, params, model_state))  # or the untimed evaluation would begin with the rest
        return (whole, beside), params, model_state

    def fingerprint(self, params: Any) -> list[float]:
        some = [leaf.reshape(-1)[:: max(1, leaf.size // ELEMENTS)][:ELEMENTS] for leaf in jax.tree.leaves(params)]
        return np.concatenate([np.asarray(part, np.float32) for part in some]).tolist()  # type: ignore[no-any-return]

    def watched(self, workload: Any, params: Any, train: Callable[[], Any]) -> tuple[Any, bool]:
        return train(), False  # its forward pass is compiled, and its weights are no numbers there


averaged = functools.partial(base.averaged, Around)
