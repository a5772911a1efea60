"""mini_librispeech_deepspeech in JAX: small bidirectional LSTMs, trained with CTC."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from miniperf.workloads.jax import Dropout, layer_norm, linear
from miniperf.workloads.librispeech_deepspeech.data import DeepSpeechData
from miniperf.workloads.speech.data import SYMBOLS
from miniperf.workloads.speech.jax import LSTM, MaskedBatchNorm, SpeechWorkload, Subsampling

CHANNELS, WIDTH, LSTM_LAYERS = 16, 64, 2


class BidirectionalLSTM(nn.Module):
    """Batch norm, then an LSTM in each direction, half the width each; the backward one starts at the last frame."""

    @nn.compact
    def __call__(self, x: jax.Array, paddings: jax.Array, train: bool) -> jax.Array:
        x = MaskedBatchNorm(name="batch_norm")(x, paddings, train)
        back = LSTM(WIDTH // 2, name="back")(reverse(x, paddings))
        return jnp.concatenate([LSTM(WIDTH // 2, name="ahead")(x), reverse(back, paddings)], axis=-1)


def reverse(x: jax.Array, paddings: jax.Array) -> jax.Array:
    """Each utterance of x [batch, frames, features] from its end to its start; padding stays behind."""
    frame = jnp.arange(x.shape[1])
    lengths = (1 - paddings).sum(axis=1).astype(jnp.int32)[:, None]
    source = jnp.where(frame < lengths, lengths - 1 - frame, frame)
    return jnp.take_along_axis(x, source[:, :, None], axis=1)


class FeedForward(nn.Module):
    """Batch norm, then a layer with rectified units."""

    @nn.compact
    def __call__(self, x: jax.Array, paddings: jax.Array, dropout_rate: float, train: bool) -> jax.Array:
        x = nn.relu(linear(WIDTH, WIDTH, "linear")(MaskedBatchNorm(name="batch_norm")(x, paddings, train)))
        return Dropout(dropout_rate)(x, deterministic=not train)


class DeepSpeech(nn.Module):
    """Convolutional subsampling, bidirectional LSTMs, a feed-forward layer, CTC head (Amodei et al. 2016), with
    residuals as in AlgoPerf."""

    @nn.compact
    def __call__(
        self, inputs: tuple[jax.Array, jax.Array], dropout_rate: float, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """inputs: features [batch, frames, bins], and paddings [batch, frames], 1 for padding. Returns logits
        [batch, outputs, symbols] and their paddings."""
        x, paddings = Subsampling(CHANNELS, WIDTH, name="subsampling")(*inputs, dropout_rate, train)
        for i in range(LSTM_LAYERS):
            x = x + BidirectionalLSTM(name=f"lstms_{i}")(x, paddings, train)
        x = x + FeedForward(name="feed_forward")(x, paddings, dropout_rate, train)
        return linear(WIDTH, len(SYMBOLS), "output")(layer_norm("norm")(x)), paddings


class MiniLibriSpeechDeepSpeechWorkload(DeepSpeechData, SpeechWorkload):
    def build_model(self) -> nn.Module:
        return DeepSpeech()
