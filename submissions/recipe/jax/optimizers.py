"""The base optimizers of the submissions in JAX."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .. import optimizers
from ..optimizers import EPSILON, MOMENTUM, OptimizerSettings, hidden_matrices
from .nadamw import scale_by_nadam


def adams(hyperparameters: Any, step_hint: int) -> dict[str, Any]:
    """The arguments that all the optimizers here share. `step_hint` is for those with schedules of their own."""
    del step_hint
    return {
        "b1": 1.0 - hyperparameters.one_minus_beta1,
        "b2": hyperparameters.beta2,
        "eps": getattr(hyperparameters, "epsilon", EPSILON),
    }


@dataclass(frozen=True)
class BaseOptimizer:
    """A base optimizer: what it takes, and its transformation of gradients, called with the arguments.

    Attributes:
        kind: None where the optax that is there has not got it.
        requirement: of pip, for one that has.
    """

    settings: OptimizerSettings
    kind: Callable[..., optax.GradientTransformation] | None
    arguments: Callable[[Any, int], dict[str, Any]] = adams
    requirement: str = ""

    def missing(self) -> str | None:
        """What to install first, in one line; None if nothing."""
        if self.kind is not None:
            return None
        return f"{self.settings.name} is not in optax {optax.__version__}: pip install '{self.requirement}'"

    def build(self, hyperparameters: Any, step_hint: int) -> optax.GradientTransformation:
        """All of an update but the learning rate, which is a function of the step: theta <- theta - lr * update."""
        assert self.kind is not None

        def decayed(params: Any) -> Any:
            return jax.tree_util.tree_map_with_path(
                lambda path, leaf: self.settings.decays(str(getattr(path[-1], "key", path[-1])), leaf.ndim), params
            )

        scale = self.kind(**self.arguments(hyperparameters, step_hint))
        return optax.chain(scale, optax.add_decayed_weights(hyperparameters.weight_decay, mask=decayed))


def _ademamix(hyperparameters: Any, step_hint: int) -> dict[str, Any]:
    """With the paper's two schedules (arXiv 2409.03137, section 3), which go on to the end of training.

    In the logarithm of the slow momentum's decay they are harmonic: its half-life grows linearly. optax counts the
    updates from 0, the paper from 1.
    """
    shared = adams(hyperparameters, step_hint)
    fast, slow = math.log(shared["b1"]), math.log(hyperparameters.beta3)

    def beta3(updates: jax.Array) -> jax.Array:
        share = jnp.minimum((updates + 1) / step_hint, 1.0)
        return jnp.exp(fast * slow / ((1 - share) * slow + share * fast))

    def alpha(updates: jax.Array) -> jax.Array:
        return hyperparameters.alpha * jnp.minimum((updates + 1) / step_hint, 1.0)

    return {**shared, "b3": beta3, "alpha": alpha}


@dataclass(frozen=True)
class ScheduleFree(BaseOptimizer):
    """One that has the learning rate itself, and evaluates an average that it keeps itself."""

    def build(self, hyperparameters: Any, step_hint: int) -> optax.GradientTransformation:
        """All of an update, whose `update` takes `learning_rate=`: optax asks for it when the optimizer is made."""
        assert self.kind is not None
        arguments = {**self.arguments(hyperparameters, step_hint), "weight_decay": hyperparameters.weight_decay}
        made = partial(self.kind, **arguments)

        def update(gradients: Any, state: Any, params: Any = None, *, learning_rate: Any, **extra: Any) -> Any:
            return made(learning_rate).update(gradients, state, params, **extra)

        return optax.GradientTransformationExtraArgs(made(1.0).init, update)

    def average(self, state: Any, params: Any) -> Any:
        """What is evaluated, of the optimizer's state and the weights in training."""
        return optax.contrib.schedule_free_eval_params(state, params)


def _muon(hyperparameters: Any, step_hint: int) -> dict[str, Any]:
    return {**adams(hyperparameters, step_hint), "momentum": getattr(hyperparameters, "momentum", MOMENTUM)}


def _scale_by_muon(b1: float, b2: float, eps: float, momentum: float) -> optax.GradientTransformation:
    """That of optax for matrices, NadamW's for all else; both to be subtracted."""

    def labels(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: "muon" if hidden_matrices(jax.tree_util.keystr(path), leaf.ndim) else "nadamw", params
        )

    matrices = optax.chain(optax.contrib.muon(1.0, beta=momentum, consistent_rms=0.2), optax.scale(-1.0))
    return optax.partition({"muon": matrices, "nadamw": scale_by_nadam(b1, b2, eps)}, labels)


def _has_muon() -> bool:
    """Whether optax has it with a scale that suits NadamW's learning rate."""
    made = getattr(optax.contrib, "muon", None)
    return made is not None and "consistent_rms" in inspect.signature(made).parameters


nadamw = BaseOptimizer(optimizers.nadamw, scale_by_nadam)
adamw = BaseOptimizer(optimizers.adamw, optax.scale_by_adam)
ademamix = BaseOptimizer(
    optimizers.ademamix, getattr(optax.contrib, "scale_by_ademamix", None), _ademamix, "optax>=0.2.5"
)
muon = BaseOptimizer(optimizers.muon, _scale_by_muon if _has_muon() else None, _muon, "optax>=0.2.7")
schedule_free_adamw = ScheduleFree(
    optimizers.schedule_free_adamw, getattr(optax.contrib, "schedule_free_adamw", None), requirement="optax>=0.2.5"
)
