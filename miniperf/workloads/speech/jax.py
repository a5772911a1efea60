"""What the speech workloads share in JAX: parts of their models, and CTC."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from miniperf.workloads.jax import Dropout, JaxWorkload, linear, uniform
from miniperf.workloads.speech.data import (
    BINS,
    BLANK,
    FREQUENCY_MASKS,
    MAX_MASKED_BINS,
    MAX_MASKED_SHARE,
    TIME_MASKS,
    SpeechData,
    output_lengths,
)


def spec_augment(key: jax.Array, features: jax.Array, paddings: jax.Array) -> jax.Array:
    """Bands of bins and stretches of frames set to the mean, drawn for each utterance.

    The draws are shares of an utterance's own length, so that padding does not change them."""
    batch, length, bins = features.shape
    kept = jnp.ones_like(features, dtype=bool)
    bin_index, frame_index = jnp.arange(bins), jnp.arange(length)
    lengths = (1 - paddings).sum(axis=1)[:, None]
    for _ in range(FREQUENCY_MASKS):
        key, width_key, start_key = jax.random.split(key, 3)
        width = jax.random.randint(width_key, (batch, 1), 0, MAX_MASKED_BINS + 1)
        start = jnp.floor(jax.random.uniform(start_key, (batch, 1)) * (bins - width + 1))
        kept &= ~((bin_index >= start) & (bin_index < start + width))[:, None, :]
    for _ in range(TIME_MASKS):
        key, width_key, start_key = jax.random.split(key, 3)
        width = jnp.round(jax.random.uniform(width_key, (batch, 1)) * MAX_MASKED_SHARE * lengths)
        start = jnp.floor(jax.random.uniform(start_key, (batch, 1)) * (lengths - width + 1))
        kept &= ~((frame_index >= start) & (frame_index < start + width))[:, :, None]
    return features * kept


class MaskedBatchNorm(nn.Module):
    """Batch norm over the frames that are not padding; the others become 0. As in PyTorch a batch is divided by its
    biased deviation, and the running variance is unbiased."""

    @nn.compact
    def __call__(self, inputs: jax.Array, paddings: jax.Array, train: bool) -> jax.Array:
        """inputs: [batch, frames, features]; paddings: [batch, frames], 1 for padding."""
        size = inputs.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, size)
        running_var = self.variable("batch_stats", "var", jnp.ones, size)
        scale = self.param("scale", nn.initializers.ones, size)
        bias = self.param("bias", nn.initializers.zeros, size)
        valid = (paddings < 0.5)[:, :, None]
        mean, var = running_mean.value, running_var.value
        if train:
            count = valid.sum()
            mean = jnp.where(valid, inputs, 0.0).sum(axis=(0, 1)) / count
            var = (jnp.where(valid, inputs - mean, 0.0) ** 2).sum(axis=(0, 1)) / count
            if not self.is_initializing():
                running_mean.value = 0.96 * running_mean.value + 0.04 * mean
                running_var.value = 0.96 * running_var.value + 0.04 * var * count / (count - 1)
        outputs = (inputs - mean) * jax.lax.rsqrt(var + 1e-5) * scale + bias
        return jnp.where(valid, outputs, 0.0)


class Subsampling(nn.Module):
    """Two convolutions of stride 2 over frames and bins, then a projection to `width`."""

    channels: int
    width: int

    @nn.compact
    def __call__(
        self, features: jax.Array, paddings: jax.Array, dropout_rate: float, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """features: [batch, frames, BINS], SpecAugment's masks upon them in training. Returns [batch, outputs, width]
        and the outputs' paddings."""
        if train:
            features = spec_augment(self.make_rng("dropout"), features, paddings)
        x = features[..., None]
        for name in ("conv1", "conv2"):
            paddings = paddings[:, ::2]
            begin = uniform(9 * x.shape[-1])
            conv = nn.Conv(self.channels, (3, 3), 2, padding=1, kernel_init=begin, bias_init=begin, name=name)
            x = nn.relu(conv(x)) * (1 - paddings)[:, :, None, None]  # else the bias would leak out of the padding
        x = x.swapaxes(2, 3).reshape(*x.shape[:2], -1)
        x = linear(self.channels * output_lengths(BINS), self.width, "linear")(x)
        return Dropout(dropout_rate)(x, deterministic=not train), paddings


class LSTM(nn.Module):
    """torch.nn.LSTM of one layer, with its two biases: their sum moves twice as far in a step of Adam as one would."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [batch, frames, features]. Returns [batch, frames, width]."""
        start, gates = uniform(self.width), 4 * self.width
        weight_ih = self.param("weight_ih", start, (x.shape[-1], gates))
        weight_hh = self.param("weight_hh", start, (self.width, gates))
        bias_ih, bias_hh = (self.param(name, start, (gates,)) for name in ("bias_ih", "bias_hh"))

        def step(carry: tuple[jax.Array, jax.Array], ahead: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            hidden, cell = carry
            i, f, g, o = jnp.split(ahead + hidden @ weight_hh, 4, axis=-1)
            cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
            hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
            return (hidden, cell), hidden

        zeros = jnp.zeros((len(x), self.width), x.dtype)
        _, outputs = jax.lax.scan(step, (zeros, zeros), (x @ weight_ih + bias_ih + bias_hh).swapaxes(0, 1))
        return outputs.swapaxes(0, 1)


class SpeechWorkload(SpeechData, JaxWorkload):
    """Subclasses give the model, which maps features and paddings to logits and their paddings."""

    cut_to_longest = False  # every other length would be compiled anew

    def loss_fn(
        self, label_batch: Any, logits_batch: Any, mask_batch: Any = None, label_smoothing: float = 0.0
    ) -> dict[str, Any]:
        """CTC as in PyTorch: summed over utterances, divided by the number of their letters. Nothing is smoothed."""
        del label_smoothing
        targets, target_paddings = label_batch
        losses = optax.ctc_loss(*logits_batch, targets, target_paddings, blank_id=BLANK)
        letters = (1 - target_paddings).sum(axis=1)
        if mask_batch is not None:
            losses = jnp.where(mask_batch > 0, losses * mask_batch, 0.0)
            letters = letters * (mask_batch > 0)
        return {"summed": losses.sum(), "n_valid_examples": jnp.maximum(letters.sum(), 1), "per_example": losses}
