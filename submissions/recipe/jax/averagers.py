"""The averagers of the submissions in JAX, and the average in the place of the raw weights for an evaluation.

The harness trains on with what it evaluated. So `State.raw` holds the raw weights meanwhile. Between evaluations its
leaves are empty: training holds no weights twice. A new state holds them too, by reference, and so has the shapes of
every state that is saved after an evaluation.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from weight_averaging.averages.schedule import is_due
from weight_averaging.jax import HostLAWAState, averaging_for

from ..averaging import BUFFERS, Averaging, buffers_of
from .optimizers import ScheduleFree
from .training import State, compiled, on_every_device


def averages_statistics(hyperparameters: Any) -> bool:
    """Whether batch-norm statistics are averaged with the parameters. ValueError, in one line, for what cannot be."""
    buffers = buffers_of(hyperparameters)
    if buffers == "recompute":
        raise ValueError(
            f"{BUFFERS}='recompute' is for PyTorch only: use 'average' or 'latest' (batches of changing shapes have no "
            "place in an optimizer state of fixed ones)"
        )
    return buffers == "average"


class WeightsAverager:
    """An averager of a model's parameters, and of its batch-norm statistics where these are averaged.

    MemoryError, in one line, if a window fits neither the device nor the host.
    """

    def __init__(
        self, averaging: Averaging, hyperparameters: Any, step_hint: int, params: Any, model_state: Any
    ) -> None:
        self._described = averaging.describe(hyperparameters, step_hint)
        self._statistics_too = averages_statistics(hyperparameters)
        weights = self._averaged(params, model_state)
        self._averager = averaging_for(weights, self._described)
        self._empty = jax.tree.map(lambda leaf: jnp.zeros(0, leaf.dtype), weights)
        self._told = False
        self._take, self._average = compiled(self._update, overwrites=(0,)), compiled(self._averager.average)

    def init(self, params: Any, model_state: Any) -> tuple[Any, Any]:
        """`State.averaging` and `State.raw` of a new state."""
        weights = self._averaged(params, model_state)
        state = self._averager.init(weights)
        if isinstance(state, HostLAWAState):
            self._take, self._average = self._update, self._averager.average
            return state, weights
        return on_every_device(state), weights

    def restored(self, state: State) -> State:
        """A window in host memory again there: the harness restores it onto the devices."""
        if isinstance(state.averaging, HostLAWAState):
            return state._replace(averaging=jax.tree.map(np.asarray, state.averaging))
        return state

    def _update(self, averaging: Any, weights: Any, step: Any, learning_rate: Any) -> Any:
        return self._averager.update(averaging, weights, step, learning_rate=learning_rate)

    def update(self, state: State, params: Any, model_state: Any, step: int, rate: float | None = None) -> State:
        """After update `step`, of this learning rate. Nothing is computed, or waited for, unless a snapshot is due."""
        assert self._described.interval is not None
        if not is_due(step, self._described.interval):
            return state
        weights = self._averaged(params, model_state)
        return state._replace(averaging=self._take(state.averaging, weights, step, rate))

    def swap_in(self, state: State, params: Any, model_state: Any) -> tuple[State, Any, Any]:
        """The average in the place of the raw weights, if there is one. Once only: a second time changes nothing."""
        if _holds(state.raw):
            return state, params, model_state
        raw = self._averaged(params, model_state)
        state = state._replace(raw=raw)
        if not self.ready(state):
            if not self._told:
                logging.warning("%s is not ready: the raw weights are evaluated until it is", str(self._described))
            self._told = True
            return state, params, model_state
        return state, *self._put(self._average(state.averaging, raw), model_state)

    def swap_out(self, state: State, params: Any, model_state: Any) -> tuple[State, Any, Any]:
        """The raw weights, bit for bit."""
        if not _holds(state.raw):
            return state, params, model_state
        return state._replace(raw=self._empty), *self._put(state.raw, model_state)

    def ready(self, state: State) -> bool:
        """Whether an evaluation would see an average."""
        return bool(self._averager.ready(state.averaging))

    def snapshot_steps(self, state: State) -> list[int]:
        """The updates whose snapshots are held (a window), or the last one taken in (an EMA)."""
        steps = getattr(state.averaging, "steps", None)
        steps = state.averaging.snapshot_step if steps is None else steps
        return [int(step) for step in np.atleast_1d(steps) if step]

    def _averaged(self, params: Any, model_state: Any) -> dict[str, Any]:
        # Leaves alone, and flat: some official workloads return their statistics in another container than they were
        # given them in, or from the first update on with axes of length one.
        leaves = jax.tree.leaves(model_state) if self._statistics_too else []
        return {"params": params, "statistics": [jnp.ravel(leaf) for leaf in leaves]}

    def _put(self, weights: dict[str, Any], model_state: Any) -> tuple[Any, Any]:
        """Parameters and model state of what `_averaged` gave."""
        if self._statistics_too:
            now, structure = jax.tree.flatten(model_state)
            leaves = [leaf.reshape(jnp.shape(old)) for leaf, old in zip(weights["statistics"], now, strict=True)]
            model_state = jax.tree.unflatten(structure, leaves)
        return weights["params"], model_state


class OptimizersAverage:
    """The average that an optimizer keeps itself, in the place of the raw weights for an evaluation.

    Batch-norm statistics would be those of the raw weights: a model with any is refused.
    """

    def __init__(self, optimizer: ScheduleFree, params: Any, model_state: Any) -> None:
        if jax.tree.leaves(model_state):
            raise ValueError(
                f"{optimizer.settings.name} evaluates an average, and the statistics of batch norm would be those of "
                "other weights: in JAX nothing recomputes them; take --framework=pytorch on this workload"
            )
        self._average = compiled(optimizer.average)
        self._empty = jax.tree.map(lambda leaf: jnp.zeros(0, leaf.dtype), params)

    def init(self, params: Any, model_state: Any) -> tuple[Any, Any]:
        """`State.averaging` and `State.raw` of a new state."""
        del model_state
        return (), params

    def restored(self, state: State) -> State:
        return state

    def update(self, state: State, params: Any, model_state: Any, step: int, rate: float | None = None) -> State:
        """Nothing: the optimizer has done it."""
        del params, model_state, step, rate
        return state

    def swap_in(self, state: State, params: Any, model_state: Any) -> tuple[State, Any, Any]:
        """The average in the place of the raw weights. Once only: a second time changes nothing."""
        if _holds(state.raw):
            return state, params, model_state
        return state._replace(raw=params), self._average(state.optimizer, params), model_state

    def swap_out(self, state: State, params: Any, model_state: Any) -> tuple[State, Any, Any]:
        """The raw weights, bit for bit."""
        if not _holds(state.raw):
            return state, params, model_state
        return state._replace(raw=self._empty), state.raw, model_state

    def ready(self, state: State) -> bool:
        """Whether an evaluation would see an average."""
        return True

    def snapshot_steps(self, state: State) -> list[int]:
        """None: there are no snapshots."""
        return []


def _holds(raw: Any) -> bool:
    return any(leaf.size for leaf in jax.tree.leaves(raw))
