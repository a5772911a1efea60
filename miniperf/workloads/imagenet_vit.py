"""mini_imagenet_vit: a small Vision Transformer on handwritten digits.

Data: the 1,797 scans of 8 x 8 pixels that ship with scikit-learn (UCI's optical recognition of handwritten digits),
shifted at random by up to a pixel in training, as ImageNet's images are cropped at random.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from miniperf import spec
from miniperf.workloads.base import MiniWorkload, Split, summed

SIDE, PATCH, CLASSES = 8, 2, 10
WIDTH, DEPTH, HEADS = 64, 2, 4
TRAIN_EXAMPLES, VALIDATION_EXAMPLES = 797, 500


class Block(nn.Module):
    """Pre-norm self-attention and MLP, each with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.projection = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp1, self.mlp2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, dropout_rate: float) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, HEADS, WIDTH // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, WIDTH)
        x = x + F.dropout(self.projection(mixed), dropout_rate, self.training)
        return x + F.dropout(self.mlp2(F.gelu(self.mlp1(self.norm2(x)))), dropout_rate, self.training)


class ViT(nn.Module):
    """Patches, learned positions, pre-norm blocks, mean pooling (Dosovitskiy et al. 2021; Beyer et al. 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(PATCH * PATCH, WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn((SIDE // PATCH) ** 2, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)
        nn.init.zeros_(self.head.weight)

    def forward(self, inputs: Tensor, dropout_rate: float) -> Tensor:
        """inputs: [batch, 8, 8]. Returns logits [batch, 10]."""
        patches = inputs.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).reshape(len(inputs), -1, PATCH * PATCH)
        x = self.embedding(patches) + self.position
        for block in self.blocks:
            x = block(x, dropout_rate)
        return self.head(self.norm(x).mean(dim=1))


class MiniImagenetVitWorkload(MiniWorkload):
    batch_size = 64
    step_hint = 3000
    target_metric_name = "accuracy"
    validation_target_value = 0.960
    test_target_value = 0.972
    loss_type = spec.LossType.SOFTMAX_CROSS_ENTROPY

    def load_splits(self) -> dict[str, Split]:
        digits = load_digits()
        order = np.random.RandomState(0).permutation(len(digits.target))
        inputs = torch.from_numpy((digits.images[order] / 8.0 - 1.0).astype(np.float32))
        targets = torch.from_numpy(digits.target[order].astype(np.int64))
        sizes = [TRAIN_EXAMPLES, VALIDATION_EXAMPLES, len(order) - TRAIN_EXAMPLES - VALIDATION_EXAMPLES]
        parts = zip(("train", "validation", "test"), inputs.split(sizes), targets.split(sizes), strict=True)
        return {name: {"inputs": x, "targets": y} for name, x, y in parts}

    def build_model(self) -> nn.Module:
        return ViT()

    def collate(self, rows: Split, rng: np.random.RandomState | None) -> dict[str, Any]:
        if rng is None:
            return rows
        padded = F.pad(rows["inputs"], (1, 1, 1, 1), value=-1.0)
        down, right = rng.randint(0, 3, size=2)
        return {**rows, "inputs": padded[:, down : down + SIDE, right : right + SIDE]}

    def is_output_params(self, param_key: str) -> bool:
        return param_key.startswith("head.")

    def loss_fn(
        self, label_batch: Tensor, logits_batch: Tensor, mask_batch: Tensor | None = None, label_smoothing: float = 0.0
    ) -> dict[str, Tensor]:
        losses = F.cross_entropy(logits_batch, label_batch, reduction="none", label_smoothing=label_smoothing)
        return summed(losses, mask_batch)

    def metric_sums(self, batch: dict[str, Any], logits: Any) -> dict[str, Tensor]:
        correct = (logits.argmax(dim=1) == batch["targets"]) * batch["weights"]
        return {"accuracy": correct.sum(), "loss": self.loss_fn(batch["targets"], logits, batch["weights"])["summed"]}
