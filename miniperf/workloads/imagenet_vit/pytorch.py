"""mini_imagenet_vit in PyTorch: a small Vision Transformer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniperf.workloads.imagenet_vit.data import CLASSES, SIDE, ImagenetVitData
from miniperf.workloads.pytorch import PyTorchWorkload, summed

PATCH = 7
WIDTH, DEPTH, HEADS = 64, 2, 4


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
        """inputs: [batch, 28, 28]. Returns logits [batch, 10]."""
        patches = inputs.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).reshape(len(inputs), -1, PATCH * PATCH)
        x = self.embedding(patches) + self.position
        for block in self.blocks:
            x = block(x, dropout_rate)
        return self.head(self.norm(x).mean(dim=1))


class MiniImagenetVitWorkload(ImagenetVitData, PyTorchWorkload):
    def build_model(self) -> nn.Module:
        return ViT()

    def is_output_params(self, param_key: str) -> bool:
        return param_key.startswith("head.")

    def loss_fn(
        self, label_batch: Tensor, logits_batch: Tensor, mask_batch: Tensor | None = None, label_smoothing: float = 0.0
    ) -> dict[str, Tensor]:
        losses = F.cross_entropy(logits_batch, label_batch, reduction="none", label_smoothing=label_smoothing)
        return summed(losses, mask_batch)
