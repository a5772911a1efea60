"""Averages of flax nnx models, whose weights are in the model and not beside it. Needs flax."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from weight_averaging.elsewhere import AnswersHabits
from weight_averaging.errors import UsageError
from weight_averaging.jax.averager import Averager, State


class AveragingVariable(nnx.Variable):  # type: ignore[type-arg]
    """An array of an averager's state: nnx's transformations and checkpoints take it with the model's own."""


class ModelAverager(AnswersHabits, nnx.Module, Generic[State]):
    """An averager of a model's weights, beside it as `nnx.Optimizer` is.

    Args:
        model: as it begins.
        averager: of `weight_averaging.jax`. One with a window in host memory goes outside `nnx.jit`.
        wrt: what is averaged, a filter of nnx: parameters; `(nnx.Param, nnx.BatchStat)` for batch statistics too.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from weight_averaging.jax import ema
    >>> model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    >>> averaging = ModelAverager(model, ema(decay=0.5))
    >>> for step in (1, 2, 3):
    ...     model.kernel = nnx.Param(jnp.full((1, 1), float(step)))  # an optimizer's step, in a real loop
    ...     averaging.update(model, step)
    >>> with averaging.averaged(model):
    ...     float(model.kernel[0, 0])
    2.25
    >>> float(model.kernel[0, 0])
    3.0
    """

    _called = "with averaging.averaged(model) has the average in the model"

    def __init__(self, model: Any, averager: Averager[State], wrt: Any = nnx.Param) -> None:
        self.averager = averager
        self.wrt = wrt
        leaves, self.structure = jax.tree.flatten(averager.init(_weights(model, wrt)))
        self.held = getattr(nnx, "data", list)([AveragingVariable(leaf) for leaf in leaves])

    @property
    def state(self) -> State:
        """The averager's state, by value."""
        state: State = jax.tree.unflatten(self.structure, [_value_of(variable) for variable in self.held])
        return state

    def update(self, model: Any, step: int | Array, learning_rate: Any = None) -> None:
        """Tell that update `step` of the model is complete: 1, 2, ...; for `learning_rate` see `Averager.update`."""
        state = self.averager.update(self.state, _weights(model, self.wrt), step, learning_rate=learning_rate)
        for variable, leaf in zip(self.held, jax.tree.leaves(state), strict=True):
            _set_value(variable, leaf)

    def average(self, model: Any) -> Any:
        """The average as a tree of arrays like `nnx.to_pure_dict(nnx.state(model, wrt))`; the weights if not ready."""
        return self.averager.average(self.state, _weights(model, self.wrt))

    def ready(self) -> Array:
        """Whether there is an average, bool[]."""
        return self.averager.ready(self.state)

    @contextmanager
    def averaged(self, model: Any) -> Iterator[Any]:
        """The model with the average in it within a `with` block; its raw weights are back afterwards, bit for bit.

        To be called outside `nnx.jit`.

        Raises:
            UsageError: at the end, the raw weights being back, if the block has written to what is averaged.
        """
        raw, average = _weights(model, self.wrt), self.average(model)
        _put(model, self.wrt, average)
        try:
            yield model
            now = _weights(model, self.wrt)
        finally:
            _put(model, self.wrt, raw)
        pairs = zip(jax.tree_util.tree_leaves_with_path(now), jax.tree.leaves(average), strict=True)
        for (path, leaf), shown in pairs:
            if leaf is not shown and not jnp.array_equal(
                leaf, shown, equal_nan=jnp.issubdtype(leaf.dtype, jnp.inexact)
            ):
                raise UsageError(
                    f"{jax.tree_util.keystr(path)} was written to while the average was in the model: what was written "
                    "is gone, the raw weights are back; train outside of averaged()"
                )


def _value_of(variable: Any) -> Any:
    """By the name that this release of flax has for it."""
    return variable.get_value() if hasattr(nnx.Variable, "get_value") else variable.value


def _set_value(variable: Any, value: Any) -> None:
    if hasattr(nnx.Variable, "set_value"):
        variable.set_value(value)
    else:
        variable.value = value


def _weights(model: Any, wrt: Any) -> Any:
    """The arrays themselves: `nnx.state` gives the model's own variables, in which others appear later."""
    return nnx.to_pure_dict(nnx.state(model, wrt))


def _put(model: Any, wrt: Any, weights: Any) -> None:
    state = nnx.state(model, wrt)
    nnx.replace_by_pure_dict(state, weights)
    nnx.update(model, state)
