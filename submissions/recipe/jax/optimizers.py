"""The base optimizers of the submissions in JAX."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import optax

from .. import optimizers
from ..optimizers import EPSILON, OptimizerSettings
from .nadamw import scale_by_nadam


@dataclass(frozen=True)
class BaseOptimizer:
    """A base optimizer: what it takes, and its transformation of gradients, called with b1, b2 and eps."""

    settings: OptimizerSettings
    kind: Callable[..., optax.GradientTransformation]

    def build(self, hyperparameters: Any) -> optax.GradientTransformation:
        """All of an update but the learning rate, which is a function of the step: theta <- theta - lr * update."""

        def decayed(params: Any) -> Any:
            return jax.tree_util.tree_map_with_path(
                lambda path, leaf: self.settings.decays(str(getattr(path[-1], "key", path[-1])), leaf.ndim), params
            )

        scale = self.kind(
            b1=1.0 - hyperparameters.one_minus_beta1,
            b2=hyperparameters.beta2,
            eps=getattr(hyperparameters, "epsilon", EPSILON),
        )
        return optax.chain(scale, optax.add_decayed_weights(hyperparameters.weight_decay, mask=decayed))


nadamw = BaseOptimizer(optimizers.nadamw, scale_by_nadam)
adamw = BaseOptimizer(optimizers.adamw, optax.scale_by_adam)
