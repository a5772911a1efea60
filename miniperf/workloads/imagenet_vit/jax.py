"""mini_imagenet_vit in JAX: a small Vision Transformer."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from miniperf.workloads.imagenet_vit.data import CLASSES, SIDE, ImagenetVitData
from miniperf.workloads.jax import Dropout, JaxWorkload, layer_norm, linear, summed, uniform

PATCH = 7
WIDTH, DEPTH, HEADS = 64, 2, 4


class Block(nn.Module):
    """Pre-norm self-attention and MLP, each with a residual."""

    @nn.compact
    def __call__(self, x: jax.Array, dropout_rate: float, train: bool) -> jax.Array:
        batch, length, _ = x.shape
        qkv = linear(WIDTH, 3 * WIDTH, "qkv")(layer_norm("norm1")(x))
        q, k, v = jnp.moveaxis(qkv.reshape(batch, length, 3, HEADS, WIDTH // HEADS), 2, 0)
        mixed = jax.nn.dot_product_attention(q, k, v).reshape(batch, length, WIDTH)
        x = x + Dropout(dropout_rate)(linear(WIDTH, WIDTH, "projection")(mixed), deterministic=not train)
        hidden = nn.gelu(linear(WIDTH, 2 * WIDTH, "mlp1")(layer_norm("norm2")(x)), approximate=False)
        return x + Dropout(dropout_rate)(linear(2 * WIDTH, WIDTH, "mlp2")(hidden), deterministic=not train)


class ViT(nn.Module):
    """Patches, learned positions, pre-norm blocks, mean pooling (Dosovitskiy et al. 2021; Beyer et al. 2022)."""

    @nn.compact
    def __call__(self, inputs: jax.Array, dropout_rate: float, train: bool) -> jax.Array:
        """inputs: [batch, 28, 28]. Returns logits [batch, 10]."""
        batch, patches = len(inputs), SIDE // PATCH
        x = inputs.reshape(batch, patches, PATCH, patches, PATCH).swapaxes(2, 3).reshape(batch, -1, PATCH * PATCH)
        position = self.param("position", nn.initializers.normal(0.02), (patches**2, WIDTH))
        x = linear(PATCH * PATCH, WIDTH, "embedding")(x) + position
        for i in range(DEPTH):
            x = Block(name=f"blocks_{i}")(x, dropout_rate, train)
        x = layer_norm("norm")(x).mean(axis=1)
        return nn.Dense(CLASSES, kernel_init=nn.initializers.zeros, bias_init=uniform(WIDTH), name="head")(x)


class MiniImagenetVitWorkload(ImagenetVitData, JaxWorkload):
    output_layer = "head"

    def build_model(self) -> nn.Module:
        return ViT()

    def loss_fn(
        self, label_batch: Any, logits_batch: Any, mask_batch: Any = None, label_smoothing: float = 0.0
    ) -> dict[str, Any]:
        targets = optax.smooth_labels(jax.nn.one_hot(label_batch, CLASSES), label_smoothing)
        return summed(optax.softmax_cross_entropy(logits_batch, targets), mask_batch)
