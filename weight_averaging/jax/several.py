"""Several averages of one run at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jax import Array

from weight_averaging.jax.averager import Averager
from weight_averaging.jax.trees import Tree


@dataclass(frozen=True)
class Several:
    """Averages by name, with the functions of one; what these give is a dict of what each gives.

    What the functions take, see `Averager`: params, step, learning_rate and donate are those of every average, states
    are by name.

    Attributes:
        averagers: pairs of a name and an averager.
    """

    averagers: tuple[tuple[str, Averager[Any]], ...]

    def init(self, params: Tree) -> dict[str, Any]:
        """The states."""
        return {name: averager.init(params) for name, averager in self.averagers}

    def update(
        self,
        states: Mapping[str, Any],
        params: Tree,
        step: int | Array,
        *,
        learning_rate: Any = None,
        donate: bool = False,
    ) -> dict[str, Any]:
        """The states after update `step`: `Averager.update`."""
        options = {"learning_rate": learning_rate, "donate": donate}
        return {name: averager.update(states[name], params, step, **options) for name, averager in self.averagers}

    def average(self, states: Mapping[str, Any], params: Tree) -> dict[str, Tree]:
        """The averages. For one alone: `averager.average(states[name], params)`."""
        return {name: averager.average(states[name], params) for name, averager in self.averagers}

    def ready(self, states: Mapping[str, Any]) -> dict[str, Array]:
        """Which of them there are, a bool[] each."""
        return {name: averager.ready(states[name]) for name, averager in self.averagers}


def several(**averagers: Averager[Any]) -> Several:
    """Averages of the same weights.

    Args:
        averagers: each by a name of your own, by which its states and averages are found.

    >>> import jax.numpy as jnp
    >>> from weight_averaging.jax import ema, lawa
    >>> both = several(window=lawa(1, 2), ema=ema(0.5))
    >>> states = both.init({"w": jnp.zeros(1)})
    >>> for step in (1, 2, 3):
    ...     states = both.update(states, {"w": jnp.full(1, float(step))}, step)
    >>> {name: float(tree["w"][0]) for name, tree in both.average(states, {"w": jnp.zeros(1)}).items()}
    {'window': 2.5, 'ema': 2.25}
    """
    return Several(tuple(averagers.items()))
