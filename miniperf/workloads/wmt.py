"""mini_wmt: English to German with an encoder-decoder Transformer, scored by BLEU after a beam search.

Data: pairs drawn from a grammar of both languages (`wmt_sentences`), their numbers, dates and sums worded by the
package `num2words`. As in news translation the word order differs, German writes compounds, words have a long tail, a
translator's choice between synonyms cannot be foreseen, and the sentences held out are new. The message catalogues
that ship with packages are translations by people, but too few and too diverse to learn from: Django 5.2 has some 800
messages with 3,400 German words, of which 29 % occur once only.
"""

import math
from typing import Any

import numpy as np
import sacrebleu
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniperf import spec
from miniperf.cache import cached
from miniperf.workloads.base import MiniWorkload, Split, summed
from miniperf.workloads.beam_search import beam_search
from miniperf.workloads.byte_pairs import END_ID, PAD_ID, WORD_START, BytePairs, decode
from miniperf.workloads.wmt_sentences import Grammar

TRAIN_EXAMPLES, HELD_OUT_EXAMPLES = 4000, 100  # for validation and again for test: each is translated at evaluations
MERGES = 700
WIDTH, HEADS, ENCODER_LAYERS, DECODER_LAYERS = 64, 4, 2, 1
MASKED = -1e9  # finite: a padded example has no source at all


def generate() -> dict[str, np.ndarray]:
    """The splits' `inputs` and `targets`, [examples, length] padded with 0, and the `pieces` of the vocabulary."""
    grammar = Grammar(np.random.RandomState(0))
    sizes = {"validation": HELD_OUT_EXAMPLES, "test": HELD_OUT_EXAMPLES, "train": TRAIN_EXAMPLES}
    pairs: dict[str, str] = {}  # by the English side, which is in one split only
    while len(pairs) < sum(sizes.values()):
        english, german = grammar.sentence()
        pairs.setdefault(english, german)
    texts = list(pairs.items())
    alphabet = sorted({WORD_START}.union(*(set("".join(pair).replace(" ", "")) for pair in texts)))
    train = texts[-TRAIN_EXAMPLES:]
    byte_pairs = BytePairs.learn((text for pair in train for text in pair), alphabet, MERGES)
    arrays = {"pieces": np.array(byte_pairs.pieces)}
    for side, name in enumerate(("inputs", "targets")):
        rows = [[*byte_pairs.encode(pair[side]), END_ID] for pair in texts]
        table = np.full((len(rows), max(map(len, rows))), PAD_ID, dtype=np.int16)
        for line, row in zip(table, rows, strict=True):
            line[: len(row)] = row
        start = 0
        for split, count in sizes.items():
            arrays[f"{split}_{name}"] = table[start : start + count]
            start += count
    return arrays


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
        """One more token of each hypothesis. x: [sentences, beams, width]; past: the self-attention's keys and values
        of the earlier tokens, [2, sentences * beams, heads, length, width / heads]; source: the cross-attention's of
        the encoded source. Returns x and the longer past."""
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


class MiniWmtWorkload(MiniWorkload):
    batch_size = 8
    step_hint = 2000
    target_metric_name = "bleu"
    validation_target_value = 66.05
    test_target_value = 64.76
    eval_batch_size = 128
    max_eval_train_examples = 50  # decoding is what an evaluation costs
    loss_type = spec.LossType.SOFTMAX_CROSS_ENTROPY
    beam_size = 4

    def load_splits(self) -> dict[str, Split]:
        arrays = cached("wmt_1", generate)
        self.pieces: list[str] = arrays["pieces"].tolist()
        names = ("train", "validation", "test")
        return {s: {n: torch.from_numpy(arrays[f"{s}_{n}"]) for n in ("inputs", "targets")} for s in names}

    def build_model(self) -> nn.Module:
        _ = self.splits  # the vocabulary comes with the data
        return Transformer(len(self.pieces))

    def collate(self, rows: Split, rng: np.random.RandomState | None) -> dict[str, Any]:
        """Cut to the longest sentences; the `weights` become [batch, target length], 0 for padding."""
        cut = {name: rows[name][:, (rows[name] != PAD_ID).any(dim=0)].long() for name in ("inputs", "targets")}
        return {**cut, "weights": rows["weights"].unsqueeze(1) * (cut["targets"] != PAD_ID)}

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
            "loss": float(self.loss_fn(targets, logits, weights)["summed"]),
            "correct": float(((logits.argmax(dim=2) == targets) * weights).sum()),
            "tokens": float(weights.sum()),
            "translations": self.translate(model, inputs[real]),  # type: ignore[arg-type]
            "references": [decode(row, self.pieces) for row in targets[real].tolist()],
        }

    def metrics(self, parts: list[dict[str, Any]], num_examples: int) -> dict[str, float]:
        tokens = sum(part["tokens"] for part in parts)
        translations, references = (
            [text for part in parts for text in part[name]] for name in ("translations", "references")
        )
        return {
            "loss": sum(part["loss"] for part in parts) / tokens,
            "accuracy": sum(part["correct"] for part in parts) / tokens,
            "bleu": sacrebleu.corpus_bleu(translations, [references]).score,
        }
