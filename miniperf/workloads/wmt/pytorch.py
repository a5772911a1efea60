"""mini_wmt in PyTorch: an encoder-decoder Transformer that translates by a beam search."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniperf.workloads.pytorch import PyTorchWorkload, summed
from miniperf.workloads.wmt.beam_search import beam_search
from miniperf.workloads.wmt.byte_pairs import PAD_ID, decode
from miniperf.workloads.wmt.data import WmtData

WIDTH, HEADS, ENCODER_LAYERS, DECODER_LAYERS = 64, 4, 2, 1
MASKED = -1e9  # finite: a padded example has no source at all


class Attention(nn.Module):
    """Multi-head attention of x [batch, queries, width] over keys and values [batch, heads, length, width / heads]."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.projection = (nn.Linear(WIDTH, width) for width in (WIDTH, 2 * WIDTH, WIDTH))

    def keys_values(self, x: Tensor) -> Tensor:
        """[2, batch, heads, length, width / heads]"""
        return self.kv(x).view(*x.shape[:2], 2, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)

    def forward(self, x: Tensor, keys_values: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        q = self.q(x).view(*x.shape[:2], HEADS, WIDTH // HEADS).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(q, keys_values[0], keys_values[1], mask, is_causal=causal)
        return self.projection(mixed.transpose(1, 2).reshape(x.shape))


class MLP(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH))


class EncoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.mlp = Attention(), MLP()

    def forward(self, x: Tensor, mask: Tensor, dropout_rate: float) -> Tensor:
        normed = self.norm1(x)
        mixed = self.attention(normed, self.attention.keys_values(normed), mask)
        x = x + F.dropout(mixed, dropout_rate, self.training)
        return x + F.dropout(self.mlp(self.norm2(x)), dropout_rate, self.training)


class DecoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.self_attention, self.cross_attention, self.mlp = Attention(), Attention(), MLP()

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor, dropout_rate: float) -> Tensor:
        """x: [batch, length, width]; memory: the encoded source, [batch, source length, width]; mask: over it."""
        source = self.cross_attention.keys_values(memory)
        normed = self.norm1(x)
        mixed = self.self_attention(normed, self.self_attention.keys_values(normed), causal=True)
        return self._look_at_source(x + F.dropout(mixed, dropout_rate, self.training), source, mask, dropout_rate)

    def step(self, x: Tensor, past: Tensor, source: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """One more token of each hypothesis.

        x is [sentences, beams, width]. `past` are the self-attention's keys and values of the earlier tokens, [2,
        sentences * beams, heads, length, width / heads]. `source` are the cross-attention's of the encoded source.
        Returns x and the longer past.
        """
        normed = self.norm1(x).view(-1, 1, WIDTH)
        past = torch.cat([past, self.self_attention.keys_values(normed)], dim=3)
        x = x + self.self_attention(normed, past).view(x.shape)
        # For the source a sentence's hypotheses are so many queries.
        return self._look_at_source(x, source, mask, 0.0), past

    def _look_at_source(self, x: Tensor, source: Tensor, mask: Tensor, dropout_rate: float) -> Tensor:
        x = x + F.dropout(self.cross_attention(self.norm2(x), source, mask), dropout_rate, self.training)
        return x + F.dropout(self.mlp(self.norm3(x)), dropout_rate, self.training)


class Transformer(nn.Module):
    """Pre-norm encoder and decoder with sinusoidal positions and one embedding for source, target and output
    (Vaswani et al. 2017; Press and Wolf 2017)."""

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__()
        self.shared_embedding = nn.Embedding(vocabulary_size, WIDTH)
        nn.init.normal_(self.shared_embedding.weight, std=WIDTH**-0.5)
        self.encoder = nn.ModuleList(EncoderLayer() for _ in range(ENCODER_LAYERS))
        self.encoder_norm = nn.LayerNorm(WIDTH)
        self.decoder = nn.ModuleList(DecoderLayer() for _ in range(DECODER_LAYERS))
        self.decoder_norm = nn.LayerNorm(WIDTH)

    def forward(self, inputs: Tensor, targets: Tensor, dropout_rate: float) -> Tensor:
        """inputs: [batch, source length]; targets: [batch, target length], here shifted right. Returns the logits
        [batch, target length, vocabulary] of the targets."""
        memory, mask = self.encode(inputs, dropout_rate)
        x = F.dropout(self.embed(F.pad(targets, (1, -1))), dropout_rate, self.training)
        for layer in self.decoder:
            x = layer(x, memory, mask, dropout_rate)
        return self.logits(x)

    def encode(self, inputs: Tensor, dropout_rate: float) -> tuple[Tensor, Tensor]:
        """The encoded source [batch, length, width] and a mask [batch, 1, 1, length] to add to attention scores."""
        mask = (inputs == PAD_ID)[:, None, None] * MASKED
        x = F.dropout(self.embed(inputs), dropout_rate, self.training)
        for layer in self.encoder:
            x = layer(x, mask, dropout_rate)
        return self.encoder_norm(x), mask

    def embed(self, tokens: Tensor, first: int = 0) -> Tensor:
        """tokens: [batch, length], from position `first` on. Returns [batch, length, width]."""
        return self.shared_embedding(tokens) * WIDTH**0.5 + positions(first, tokens.shape[1])

    def logits(self, x: Tensor) -> Tensor:
        return F.linear(self.decoder_norm(x), self.shared_embedding.weight)


def positions(first: int, count: int) -> Tensor:
    """Sines and cosines of growing wave length, [count, width]."""
    place = torch.arange(first, first + count).unsqueeze(1)
    angle = place * torch.exp(torch.arange(0, WIDTH, 2) * (-math.log(10_000.0) / WIDTH))
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class Hypotheses:
    """A `beam_search.Decoder`: what the model knows of the hypotheses so far."""

    def __init__(self, model: Transformer, inputs: Tensor, beam_size: int) -> None:
        self.model = model
        memory, self.mask = model.encode(inputs, 0.0)
        self.sources = [layer.cross_attention.keys_values(memory) for layer in model.decoder]  # type: ignore
        self.pasts = [memory.new_zeros(2, len(inputs) * beam_size, HEADS, 0, WIDTH // HEADS) for _ in model.decoder]
        self.length = 0

    def step(self, tokens: Tensor) -> Tensor:
        x = self.model.embed(tokens.reshape(-1, 1), self.length).view(*tokens.shape, WIDTH)
        self.length += 1
        for i, layer in enumerate(self.model.decoder):
            x, self.pasts[i] = layer.step(x, self.pasts[i], self.sources[i], self.mask)  # type: ignore[operator]
        return self.model.logits(x).log_softmax(dim=2)

    def select(self, sentences: Tensor, beams: Tensor) -> None:
        rows = (sentences.unsqueeze(1) * beams.shape[1] + beams).flatten()
        self.pasts = [past[:, rows] for past in self.pasts]
        if len(sentences) < len(self.mask):
            self.mask = self.mask[sentences]
            self.sources = [source[:, sentences] for source in self.sources]


class MiniWmtWorkload(WmtData, PyTorchWorkload):
    beam_size = 2

    def build_model(self) -> nn.Module:
        _ = self.splits  # the vocabulary comes with the data
        return Transformer(len(self.pieces))

    def forward(self, model: nn.Module, batch: dict[str, Any], dropout_rate: float) -> Tensor:
        return model(batch["inputs"], batch["targets"], dropout_rate)

    def is_output_params(self, param_key: str) -> bool:
        return param_key == "shared_embedding.weight"

    def loss_fn(
        self, label_batch: Tensor, logits_batch: Tensor, mask_batch: Tensor | None = None, label_smoothing: float = 0.0
    ) -> dict[str, Tensor]:
        """Over tokens: labels and mask are [batch, length], `n_valid_examples` counts tokens, as officially."""
        losses = F.cross_entropy(
            logits_batch.transpose(1, 2), label_batch, reduction="none", label_smoothing=label_smoothing
        )
        return summed(losses, mask_batch)

    def translate(self, model: Transformer, inputs: Tensor) -> list[str]:
        """German for sources [batch, length], which may be padded further."""
        max_length = self.splits["train"]["targets"].shape[1]
        found = beam_search(Hypotheses(model, inputs, self.beam_size), len(inputs), max_length, self.beam_size)
        return [decode(row, self.pieces) for row in found.tolist()]

    def evaluate_batch(self, model: nn.Module, batch: dict[str, Any], logits: Any) -> dict[str, Any]:
        inputs, targets, weights = batch["inputs"], batch["targets"], batch["weights"]
        real = weights.any(dim=1)
        return {
            "loss": float(self.losses(batch, logits)["summed"]),
            "correct": float(((logits.argmax(dim=2) == targets) * weights).sum()),
            "tokens": float(weights.sum()),
            "translations": self.translate(model, inputs[real]),  # type: ignore[arg-type]
            "references": [decode(row, self.pieces) for row in targets[real].tolist()],
        }
