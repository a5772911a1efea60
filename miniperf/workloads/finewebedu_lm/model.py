"""A decoder-only Transformer language model in PyTorch, at any size (`sizes.py`).

It has pre-norm RMSNorm (arXiv 1910.07467) and a last one, causal attention with rotary positions (arXiv 2104.09864),
and SwiGLU (arXiv 2002.05202). Input and output share one embedding (arXiv 1608.05859). There are no biases and no
dropout. Matrices start at N(0, .02), those that write into the residual stream at .02 / sqrt(2 layers), as in GPT-2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniperf.workloads.finewebedu_lm.sizes import INIT_STD, NORM_EPS, ROTARY_BASE, Sizes


class Decoder(nn.Module):
    """From token ids to the logits of the next token."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.norm = nn.RMSNorm(sizes.width, eps=NORM_EPS)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                writes = name.endswith("projection.weight")  # into the residual stream, twice a block
                nn.init.normal_(parameter, std=sizes.writing_std if writes else INIT_STD)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: [batch, length], ids. Returns logits [batch, length, vocabulary]; those at i see tokens 0 to i.

        Raises:
            ValueError: the length exceeds the model's context.
        """
        length = tokens.shape[1]
        if length > self.sizes.context:
            raise ValueError(f"a sequence of {length} tokens exceeds the model's context of {self.sizes.context}")
        turns = rotations(length, self.sizes.width // self.sizes.heads, tokens.device)
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, turns)
        return F.linear(self.norm(x), self.embedding.weight)


class Block(nn.Module):
    """Attention and MLP, each normalised first and added to the residual stream."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(sizes.width, eps=NORM_EPS)
        self.attention = Attention(sizes)
        self.mlp_norm = nn.RMSNorm(sizes.width, eps=NORM_EPS)
        self.mlp = SwiGLU(sizes)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), turns)
        return x + self.mlp(self.mlp_norm(x))


class Attention(nn.Module):
    """Causal self-attention; queries and keys are turned by their positions."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.qkv = nn.Linear(sizes.width, 3 * sizes.width, bias=False)
        self.projection = nn.Linear(sizes.width, sizes.width, bias=False)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        """x: [batch, length, width]; turns: see `rotations`."""
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(rotate(q, turns), rotate(k, turns), v, is_causal=True)
        return self.projection(mixed.transpose(1, 2).reshape(x.shape))


class SwiGLU(nn.Module):
    """projection(silu(gate) * value), gate and value by one matrix."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.gate_value = nn.Linear(sizes.width, 2 * sizes.hidden, bias=False)
        self.projection = nn.Linear(sizes.hidden, sizes.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.gate_value(x).chunk(2, dim=-1)
        return self.projection(F.silu(gate) * value)


def rotations(length: int, head_width: int, device: torch.device | None = None) -> Tensor:
    """Cosines and sines [2, length, head_width / 2] of the angles position * ROTARY_BASE ** (-2 i / head_width).

    Made anew in every pass, once for all layers: no buffer that an average, a checkpoint or a cast would meet.
    """
    place = torch.arange(length, device=device, dtype=torch.float32)
    speed = ROTARY_BASE ** (-torch.arange(0, head_width, 2, device=device, dtype=torch.float32) / head_width)
    angles = torch.outer(place, speed)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """x: [..., length, head width]. Entries i and i + half are the parts of a complex number, which is turned."""
    cos, sin = turns.to(x.dtype)
    real, imaginary = x.chunk(2, dim=-1)
    return torch.cat([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)


def token_losses(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropies in nats [batch, length] of targets [batch, length] under logits [batch, length, vocabulary]."""
    flat = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=label_smoothing)
    return flat.view(targets.shape)
