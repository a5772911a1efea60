"""What the harness saves of a JAX submission, and the compiled training step."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ...api import PACKAGE, spec

_sharding = importlib.import_module(f"{PACKAGE}.jax_sharding_utils")


class State(NamedTuple):
    """The optimizer state as the harness saves it. Its structure never changes.

    Attributes:
        optimizer: of the optax transformation.
        averaging: of the averager; () without one.
        raw: what training goes on from while the harness has something else to evaluate (averagers.py); () without an
            averager.
    """

    optimizer: Any
    averaging: Any
    raw: Any


def compiled_step(
    workload: Any, optimizer: optax.GradientTransformation, hyperparameters: Any, own_rate: bool = False
) -> Callable[..., Any]:
    """One update as a function

        (optimizer state, params, model state, batch, random key, learning rate)
            -> (optimizer state, params, model state, loss, gradient norm after clipping)

    that overwrites the memory of its first three arguments. The batch is split over the devices, the rest is on each.

    Args:
        own_rate: the optimizer is given the learning rate, and its updates are added as they are.
    """
    options = {}
    if hasattr(hyperparameters, "dropout_rate"):  # else the model's own default
        options["dropout_rate"] = hyperparameters.dropout_rate
    clip = optax.clip_by_global_norm(hyperparameters.grad_clip) if hasattr(hyperparameters, "grad_clip") else None

    def loss_of(params: Any, model_state: Any, batch: Any, rng: Any) -> tuple[jax.Array, Any]:
        logits, model_state = workload.model_fn(
            params, batch, model_state, spec.ForwardPassMode.TRAIN, rng, update_batch_norm=True, **options
        )
        loss_dict = workload.loss_fn(
            label_batch=batch["targets"],
            logits_batch=logits,
            mask_batch=batch.get("weights"),
            label_smoothing=getattr(hyperparameters, "label_smoothing", 0.0),
        )
        valid = loss_dict["n_valid_examples"]  # of the global batch, as the sum is; without any the gradients are 0
        return loss_dict["summed"] / jnp.where(valid > 0, valid, 1), model_state

    def step(optimizer_state: Any, params: Any, model_state: Any, batch: Any, rng: Any, learning_rate: Any) -> Any:
        (loss, new_model_state), gradients = jax.value_and_grad(loss_of, has_aux=True)(params, model_state, batch, rng)
        if clip is not None:
            gradients, _ = clip.update(gradients, clip.init(params))
        if own_rate:
            rated = optax.with_extra_args_support(optimizer)
            updates, optimizer_state = rated.update(gradients, optimizer_state, params, learning_rate=learning_rate)
        else:
            updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
            updates = jax.tree.map(lambda update: -learning_rate * update, updates)
        params = optax.apply_updates(params, updates)
        norm = jnp.sqrt(sum(jnp.sum(gradient * gradient) for gradient in jax.tree.leaves(gradients)))
        return optimizer_state, params, in_container(model_state, new_model_state), loss, norm

    whole = _sharding.get_replicate_sharding()
    return jax.jit(
        step,
        donate_argnums=(0, 1, 2),
        in_shardings=(whole, whole, whole, _sharding.get_batch_dim_sharding(), whole, whole),
        out_shardings=whole,
    )


def in_container(given: Any, new: Any) -> Any:
    """A new model state in the containers of the one given, if it has the same leaves.

    Some official workloads return None for the {} that they gave at the start, or a dict for a FrozenDict. The harness
    restores a checkpoint into what was given at the start.
    """
    paths = [[jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(t)] for t in (given, new)]
    return jax.tree.unflatten(jax.tree.structure(given), jax.tree.leaves(new)) if paths[0] == paths[1] else new


def compiled(function: Callable[..., Any], overwrites: tuple[int, ...] = ()) -> Callable[..., Any]:
    """`function`, compiled for arguments and results that are whole on every device."""
    whole = _sharding.get_replicate_sharding()
    return jax.jit(function, donate_argnums=overwrites, in_shardings=whole, out_shardings=whole)


def on_every_device(tree: Any) -> Any:
    """A tree of arrays, wherever they are, in the place of what the functions here take and give."""
    return jax.device_put(tree, _sharding.get_replicate_sharding())
