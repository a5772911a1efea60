"""mini_librispeech_conformer in PyTorch: a small Conformer, trained with CTC."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniperf.workloads.librispeech_conformer.data import ConformerData
from miniperf.workloads.speech.data import MAX_FRAMES, SYMBOLS, output_lengths
from miniperf.workloads.speech.pytorch import MaskedBatchNorm, SpeechWorkload, Subsampling

CHANNELS, WIDTH, DEPTH, HEADS, KERNEL = 16, 48, 2, 4, 5


class FeedForward(nn.Module):
    """Layer norm, then an MLP with swish."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.linear1, self.linear2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, dropout_rate: float) -> Tensor:
        return F.dropout(self.linear2(F.silu(self.linear1(self.norm(x)))), dropout_rate, self.training)


class SelfAttention(nn.Module):
    """Layer norm, then self-attention to what is not padding."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv, self.projection = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, paddings: Tensor, dropout_rate: float) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        attended = paddings < 0.5
        attended[:, 0] = True  # a softmax over nothing, in an example that is all padding, may be NaN
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attended[:, None, None, :])
        return F.dropout(self.projection(mixed.transpose(1, 2).flatten(2)), dropout_rate, self.training)


class Convolution(nn.Module):
    """Layer norm, gated linear unit, depthwise convolution over time, batch norm, swish, projection."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.gated, self.projection = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.depthwise = nn.Conv1d(WIDTH, WIDTH, KERNEL, padding=KERNEL // 2, groups=WIDTH, bias=False)
        self.batch_norm = MaskedBatchNorm(WIDTH)

    def forward(self, x: Tensor, paddings: Tensor, dropout_rate: float) -> Tensor:
        x = F.glu(self.gated(self.norm(x)), dim=-1) * (1 - paddings)[:, :, None]  # nothing from behind the end
        x = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        x = self.projection(F.silu(self.batch_norm(x, paddings)))
        return F.dropout(x, dropout_rate, self.training)


class ConformerBlock(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, each with a residual; layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.feed_forward1, self.feed_forward2 = FeedForward(), FeedForward()
        self.attention, self.convolution = SelfAttention(), Convolution()
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, paddings: Tensor, dropout_rate: float) -> Tensor:
        x = x + 0.5 * self.feed_forward1(x, dropout_rate)
        x = x + self.attention(x, paddings, dropout_rate)
        x = x + self.convolution(x, paddings, dropout_rate)
        x = x + 0.5 * self.feed_forward2(x, dropout_rate)
        return self.norm(x)


class Conformer(nn.Module):
    """Convolutional subsampling, sinusoidal positions, Conformer blocks (Gulati et al. 2020), CTC head."""

    def __init__(self) -> None:
        super().__init__()
        self.subsampling = Subsampling(CHANNELS, WIDTH)
        self.positions: Tensor
        self.register_buffer("positions", sinusoids(output_lengths(MAX_FRAMES)), persistent=False)
        self.blocks = nn.ModuleList(ConformerBlock() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.output = nn.Linear(WIDTH, len(SYMBOLS))

    def forward(self, features: Tensor, paddings: Tensor, dropout_rate: float) -> tuple[Tensor, Tensor]:
        """features: [batch, frames, bins]; paddings: [batch, frames], 1 for padding. Returns logits
        [batch, outputs, symbols] and their paddings."""
        x, paddings = self.subsampling(features, paddings, dropout_rate)
        x = x + self.positions[: x.shape[1]]
        for block in self.blocks:
            x = block(x, paddings, dropout_rate)
        return self.output(self.norm(x)), paddings


def sinusoids(length: int) -> Tensor:
    """Sines and cosines of the position at WIDTH / 2 wavelengths from 2 pi to 2 pi 10,000: [length, WIDTH]."""
    angle = torch.arange(length)[:, None] * torch.exp(torch.linspace(0, -math.log(10_000), WIDTH // 2))
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class MiniLibriSpeechConformerWorkload(ConformerData, SpeechWorkload):
    def build_model(self) -> nn.Module:
        return Conformer()
