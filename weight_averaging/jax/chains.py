"""An averager as the last part of an optax chain."""

from typing import Any, NamedTuple

import jax

from weight_averaging.errors import UsageError
from weight_averaging.jax.averager import Averager
from weight_averaging.jax.trees import Tree


class AveragingState(NamedTuple):
    """What `as_gradient_transformation` keeps in the optimizer's state.

    Attributes:
        averaging: the averager's state; its `step` counts the updates.
    """

    averaging: Any


def as_gradient_transformation(averager: Averager[Any]) -> Any:
    """An `optax.GradientTransformationExtraArgs` that averages the weights and changes no update.

    It has to be the last one of a chain. It averages the parameters with the updates that it is given applied, as
    `optax.apply_updates` does. It counts the updates itself. An average that follows the learning rate has it from
    `optimizer.update(gradients, state, params, learning_rate=...)`. Under `optax.MultiSteps` those are the whole ones.

    Raises:
        UsageError: when it updates, if it is not given the parameters.

    >>> import jax.numpy as jnp, optax
    >>> from weight_averaging.jax import averaging_state, lawa
    >>> averager = lawa(interval=1, window=2)
    >>> optimizer = optax.chain(optax.sgd(1.0), as_gradient_transformation(averager))
    >>> params = {"w": jnp.zeros(1)}
    >>> state = optimizer.init(params)
    >>> for _ in range(3):
    ...     updates, state = optimizer.update({"w": -jnp.ones(1)}, state, params)
    ...     params = optax.apply_updates(params, updates)
    >>> averager.average(averaging_state(state), params)["w"].tolist()  # of 2 and 3
    [2.5]
    """
    import optax

    def init(params: Tree) -> AveragingState:
        return AveragingState(averager.init(params))

    def update(updates: Tree, state: AveragingState, params: Tree = None, **extra: Any) -> tuple[Tree, AveragingState]:
        if params is None:
            raise UsageError("the average is of the parameters: give them, optimizer.update(gradients, state, params)")
        after = optax.apply_updates(params, updates)
        held = state.averaging
        rate = extra.get("learning_rate")
        return updates, AveragingState(averager.update(held, after, held.step + 1, learning_rate=rate))

    return optax.GradientTransformationExtraArgs(init, update)


def averaging_state(state: Any) -> Any:
    """The averager's state in that of an optimizer, wherever it is in there.

    Raises:
        UsageError: there is none, or more than one.
    """
    parts = jax.tree.leaves(state, is_leaf=_is_averaging)
    found = [part.averaging for part in parts if _is_averaging(part)]
    if len(found) != 1:
        raise UsageError(f"the optimizer's state has {len(found)} averages, not one: see as_gradient_transformation")
    return found[0]


def _is_averaging(part: Any) -> bool:
    return isinstance(part, AveragingState)
