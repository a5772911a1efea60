"""NadamW as an optax transformation."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class NadamState(NamedTuple):
    """State of `scale_by_nadam`.

    Attributes:
        step: updates done, int32[].
        mu: first moments m, a tree as the parameters.
        nu: second moments v, likewise.
    """

    step: jax.Array
    mu: optax.Updates
    nu: optax.Updates


def scale_by_nadam(b1: float, b2: float, eps: float = 1e-8) -> optax.GradientTransformation:
    """NAdam (Dozat 2016; Choi et al. 2019, arXiv 1910.05446, Table 1): Adam with Nesterov momentum.

    With gradient g and step t = 1, 2, ...:

        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) g^2
        update = [(b1 m + (1 - b1) g) / (1 - b1^t)] / (sqrt(v / (1 - b2^t)) + eps)

    It is not `optax.scale_by_adam(nesterov=True)`, which corrects the bias of the numerator's two terms apart, by
    t + 1 and by t.

    >>> import numpy as np
    >>> optimizer = scale_by_nadam(b1=0.9, b2=0.99)
    >>> update, state = optimizer.update(np.float32(2.0), optimizer.init(np.float32(1.0)))
    >>> print(f"{update:.3f}")  # 1.9: the momentum of the first update counts almost twice
    1.900
    """

    def init(params: optax.Params) -> NadamState:
        zeros = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        return NadamState(jnp.zeros([], jnp.int32), *zeros)

    def update(
        gradients: optax.Updates, state: NadamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, NadamState]:
        del params
        step = state.step + 1
        mu = _towards(state.mu, gradients, b1)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, gradients)
        ahead = _towards(mu, gradients, b1)
        unbiased1, unbiased2 = _one_minus_power(b1, step), _one_minus_power(b2, step)
        updates = jax.tree.map(lambda m, v: m / unbiased1 / (jnp.sqrt(v / unbiased2) + eps), ahead, nu)
        return updates, NadamState(step, mu, nu)

    return optax.GradientTransformation(init, update)


def _towards(moment: optax.Updates, gradients: optax.Updates, b: float) -> optax.Updates:
    return jax.tree.map(lambda m, g: b * m + (1 - b) * g, moment, gradients)


def _one_minus_power(b: float, step: jax.Array) -> jax.Array:
    """1 - b^t, not by subtraction: in float32 that loses three digits where b is close to 1 and t is small."""
    return -jnp.expm1(step * math.log(b)) if b > 0 else jnp.float32(1.0)
