"""mini_finewebedu_lm in JAX: the decoder of `model.py`, small."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from miniperf.workloads.finewebedu_lm.data import MiniFinewebEduLmData
from miniperf.workloads.finewebedu_lm.sizes import INIT_STD, NORM_EPS, ROTARY_BASE, Sizes
from miniperf.workloads.jax import JaxWorkload, summed


class Decoder(nn.Module):
    """Pre-norm decoder: RMSNorm, causal attention with rotary positions, SwiGLU, one embedding for input and output."""

    sizes: Sizes

    @nn.compact
    def __call__(self, inputs: jax.Array, dropout_rate: float, train: bool) -> jax.Array:
        """inputs: [batch, length], ids. Returns logits [batch, length, vocabulary]; there is no dropout."""
        sizes, start = self.sizes, nn.initializers.normal(INIT_STD)
        embedding = nn.Embed(sizes.vocabulary, sizes.width, embedding_init=start, name="embedding")
        turns = rotations(inputs.shape[1], sizes.width // sizes.heads)
        x = embedding(inputs)
        for i in range(sizes.layers):
            x = Block(sizes, name=f"blocks_{i}")(x, turns)
        return embedding.attend(rms_norm("norm")(x))


class Block(nn.Module):
    """Attention and MLP, each normalised first and added to the residual stream."""

    sizes: Sizes

    @nn.compact
    def __call__(self, x: jax.Array, turns: jax.Array) -> jax.Array:
        x = x + Attention(self.sizes, name="attention")(rms_norm("attention_norm")(x), turns)
        return x + SwiGLU(self.sizes, name="mlp")(rms_norm("mlp_norm")(x))


class Attention(nn.Module):
    """Causal self-attention; queries and keys are turned by their positions."""

    sizes: Sizes

    @nn.compact
    def __call__(self, x: jax.Array, turns: jax.Array) -> jax.Array:
        batch, length, width = x.shape
        qkv = matrix(3 * width, INIT_STD, "qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(batch, length, 3, self.sizes.heads, -1), 2, 0)
        mixed = jax.nn.dot_product_attention(rotate(q, turns), rotate(k, turns), v, is_causal=True)
        return matrix(width, self.sizes.writing_std, "projection")(mixed.reshape(x.shape))


class SwiGLU(nn.Module):
    """projection(silu(gate) * value), gate and value by one matrix."""

    sizes: Sizes

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gate, value = jnp.split(matrix(2 * self.sizes.hidden, INIT_STD, "gate_value")(x), 2, axis=-1)
        return matrix(x.shape[-1], self.sizes.writing_std, "projection")(nn.silu(gate) * value)


def matrix(outputs: int, std: float, name: str) -> nn.Dense:
    return nn.Dense(outputs, use_bias=False, kernel_init=nn.initializers.normal(std), name=name)


def rms_norm(name: str) -> nn.RMSNorm:
    return nn.RMSNorm(epsilon=NORM_EPS, name=name)


def rotations(length: int, head_width: int) -> jax.Array:
    """Cosines and sines [2, length, 1, head_width / 2] of the angles position * ROTARY_BASE ** (-2 i / head_width)."""
    speed = ROTARY_BASE ** (-jnp.arange(0, head_width, 2) / head_width)
    angles = jnp.outer(jnp.arange(length), speed)[:, None]
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)])


def rotate(x: jax.Array, turns: jax.Array) -> jax.Array:
    """x: [batch, length, heads, head width]. Entries i and i + half are the parts of a complex number: it is turned."""
    cos, sin = turns
    real, imaginary = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([real * cos - imaginary * sin, real * sin + imaginary * cos], axis=-1)


class MiniFinewebEduLmWorkload(MiniFinewebEduLmData, JaxWorkload):
    output_layer = "embedding"  # tied

    def build_model(self) -> nn.Module:
        return Decoder(self.sizes)

    def loss_fn(
        self, label_batch: Any, logits_batch: Any, mask_batch: Any = None, label_smoothing: float = 0.0
    ) -> dict[str, Any]:
        """Over tokens: labels and mask are [batch, length], `n_valid_examples` counts tokens, as officially."""
        targets = optax.smooth_labels(jax.nn.one_hot(label_batch, logits_batch.shape[-1]), label_smoothing)
        return summed(optax.softmax_cross_entropy(logits_batch, targets), mask_batch)
