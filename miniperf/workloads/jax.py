"""What the miniature workloads in JAX share: batches as arrays, models in flax, layers as PyTorch initialises them."""

from abc import abstractmethod
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from miniperf import spec
from miniperf.jax_sharding_utils import get_replicate_sharding
from miniperf.workloads.base import MiniWorkload


class JaxWorkload(MiniWorkload):
    """A miniature in JAX. Beside the data a subclass gives the model, the loss and what needs them.

    A model's modules have the names of its twin in PyTorch. It is called with a batch's `inputs`, the dropout rate and
    whether it trains.
    """

    @abstractmethod
    def build_model(self) -> nn.Module: ...

    def place(self, batch: Any) -> Any:
        return jax.tree.map(jnp.asarray, batch)

    @cached_property
    def model(self) -> nn.Module:
        return self.build_model()

    def init_model_fn(self, rng: Any) -> tuple[Any, Any]:
        batch = next(self._eval_batches("validation", 2))
        # On every device, as in the official harness; elsewhere a first update would be compiled apart. Not optimised,
        # since compiling takes the time here: 1.5 to 2.6 s instead of 3.4 to 5.1.
        options = {"xla_backend_optimization_level": 0}
        whole = get_replicate_sharding()
        init = jax.jit(self.model.init, static_argnums=(2, 3), out_shardings=whole, compiler_options=options)
        state = init(rng, batch["inputs"], 0.0, False)
        params = state.pop("params")
        self._param_shapes = jax.tree.map(lambda leaf: spec.ShapeTuple(leaf.shape), params)
        self._param_types = jax.tree_util.tree_map_with_path(lambda path, _: parameter_type(path), params)
        return params, state or None

    def model_fn(
        self,
        params: Any,
        augmented_and_preprocessed_input_batch: dict[str, Any],
        model_state: Any,
        mode: spec.ForwardPassMode,
        rng: Any,
        update_batch_norm: bool,
        dropout_rate: float = 0.0,
    ) -> tuple[Any, Any]:
        inputs = augmented_and_preprocessed_input_batch["inputs"]
        if mode == spec.ForwardPassMode.EVAL:
            return self._evaluated(params, model_state, inputs), model_state
        variables = {"params": params, **(model_state or {})}
        changing = list(model_state or ())
        logits, new_state = self.model.apply(
            variables, inputs, dropout_rate, True, rngs={"dropout": rng}, mutable=changing
        )
        return logits, new_state if model_state and update_batch_norm else model_state

    @cached_property
    def _evaluated(self) -> Any:
        return jax.jit(
            lambda params, state, inputs: self.model.apply({"params": params, **(state or {})}, inputs, 0.0, False)
        )

    @cached_property
    def _jitted_loss(self) -> Any:
        return jax.jit(self.loss_fn)

    def losses(self, batch: dict[str, Any], logits: Any) -> dict[str, Any]:
        return self._jitted_loss(batch["targets"], logits, batch["weights"])

    def is_output_params(self, param_key: str) -> bool:
        return param_key == self.output_layer

    output_layer = "output"  # the name of the module that gives the logits


def summed(per_example: jax.Array, mask: jax.Array | None) -> dict[str, jax.Array]:
    """The dictionary that `loss_fn` returns, from losses and a mask of 0 and 1, both [batch, ...]."""
    if mask is None:
        count = jnp.float32(per_example.size)
    else:
        per_example = jnp.where(mask > 0, per_example * mask, 0.0)
        count = mask.sum()
    return {"summed": per_example.sum(), "n_valid_examples": count, "per_example": per_example}


def linear(inputs: int, outputs: int, name: str) -> nn.Dense:
    """A dense layer that begins as torch.nn.Linear does."""
    return nn.Dense(outputs, kernel_init=uniform(inputs), bias_init=uniform(inputs), name=name)


class Dropout(nn.Dropout):
    """flax's, whose rate may also be traced: a submission may hand its own through a jit that it wraps around us.

    The mask is the same then, and so are the outputs, up to rounding.
    """

    def __call__(self, inputs: jax.Array, deterministic: bool | None = None, rng: Any = None) -> jax.Array:
        if not isinstance(self.rate, jax.Array):
            return super().__call__(inputs, deterministic, rng)
        if nn.merge_param("deterministic", self.deterministic, deterministic):
            return inputs
        keep = 1.0 - self.rate
        mask = jax.random.bernoulli(self.make_rng(self.rng_collection) if rng is None else rng, keep, inputs.shape)
        return jnp.where(mask, inputs / jnp.where(keep > 0, keep, 1.0), 0.0)


def layer_norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)


def uniform(inputs: int) -> nn.initializers.Initializer:
    """Uniform within +- 1 / sqrt(inputs), as PyTorch's linear, convolutional and recurrent layers begin."""
    bound = inputs**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def parameter_type(path: tuple[Any, ...]) -> spec.ParameterType:
    """The AlgoPerf type of a parameter, from its name and that of its module."""
    *_, owner, leaf = ("", *(str(part.key) for part in path))
    bias = leaf.startswith("bias")
    if leaf == "embedding":
        return spec.ParameterType.EMBEDDING
    if "batch_norm" in owner:
        return spec.ParameterType.BATCH_NORM_BIAS if bias else spec.ParameterType.BATCH_NORM_SCALE
    if "norm" in owner:
        return spec.ParameterType.LAYER_NORM_BIAS if bias else spec.ParameterType.LAYER_NORM_SCALE
    if "conv" in owner and not bias:
        return spec.ParameterType.CONV_WEIGHT
    if "qkv" in owner:
        return spec.ParameterType.ATTENTION_BIAS if bias else spec.ParameterType.ATTENTION_QKV
    return spec.ParameterType.BIAS if bias else spec.ParameterType.WEIGHT
