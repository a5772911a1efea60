"""mini_criteo1tb in JAX: a small DLRM."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from miniperf.workloads.criteo1tb.data import NUMBERS, Criteo1TbData
from miniperf.workloads.jax import Dropout, JaxWorkload, linear, summed

EMBEDDING_DIM = 16


class DLRM(nn.Module):
    """Bottom MLP for the numbers, one embedding per category, all pairwise products, top MLP (Naumov et al. 2019)."""

    vocabulary_sizes: Sequence[int]

    @nn.compact
    def __call__(self, inputs: jax.Array, dropout_rate: float, train: bool) -> jax.Array:
        """inputs: [batch, numbers + categories], categories as indices. Returns logits [batch]."""
        count, dim, fields = len(NUMBERS), EMBEDDING_DIM, len(self.vocabulary_sizes) + 1
        numbers, categories = inputs[:, :count], inputs[:, count:].astype(jnp.int32)
        dense = nn.relu(linear(64, dim, "bottom_2")(nn.relu(linear(count, 64, "bottom_0")(numbers))))
        start = nn.initializers.normal(dim**-0.5)
        tables = [
            nn.Embed(size, dim, embedding_init=start, name=f"embeddings_{i}")
            for i, size in enumerate(self.vocabulary_sizes)
        ]
        rows = jnp.stack([dense, *(table(categories[:, i]) for i, table in enumerate(tables))], axis=1)
        upper = np.triu_indices(fields, 1)
        products = (rows @ rows.transpose(0, 2, 1))[:, upper[0], upper[1]]
        joined = jnp.concatenate([dense, products], axis=1)
        hidden = nn.relu(linear(joined.shape[1], 128, "top_hidden")(joined))
        hidden = Dropout(dropout_rate)(nn.relu(linear(128, 64, "top_hidden2")(hidden)), deterministic=not train)
        return linear(64, 1, "output")(hidden).squeeze(1)


class MiniCriteo1TbWorkload(Criteo1TbData, JaxWorkload):
    def build_model(self) -> nn.Module:
        _ = self.splits  # the vocabularies come with the data
        return DLRM(tuple(self.vocabulary_sizes))

    def loss_fn(
        self, label_batch: Any, logits_batch: Any, mask_batch: Any = None, label_smoothing: float = 0.0
    ) -> dict[str, Any]:
        targets = label_batch * (1 - label_smoothing) + 0.5 * label_smoothing
        return summed(optax.sigmoid_binary_cross_entropy(logits_batch, targets), mask_batch)
