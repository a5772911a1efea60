"""mini_librispeech_deepspeech in PyTorch: small bidirectional LSTMs, trained with CTC."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniperf.workloads.librispeech_deepspeech.data import DeepSpeechData
from miniperf.workloads.speech.data import SYMBOLS
from miniperf.workloads.speech.pytorch import MaskedBatchNorm, SpeechWorkload, Subsampling

CHANNELS, WIDTH, LSTM_LAYERS = 16, 64, 2


class BidirectionalLSTM(nn.Module):
    """Batch norm, then an LSTM in each direction, half the width each; the backward one starts at the last frame.

    The backward one runs forward over reversed utterances: on a CPU torch's packed sequences take six times as long."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_norm = MaskedBatchNorm(WIDTH)
        self.ahead = nn.LSTM(WIDTH, WIDTH // 2, batch_first=True)
        self.back = nn.LSTM(WIDTH, WIDTH // 2, batch_first=True)

    def forward(self, x: Tensor, paddings: Tensor) -> Tensor:
        x = self.batch_norm(x, paddings)
        return torch.cat([self.ahead(x)[0], reverse(self.back(reverse(x, paddings))[0], paddings)], dim=-1)


def reverse(x: Tensor, paddings: Tensor) -> Tensor:
    """Each utterance of x [batch, frames, features] from its end to its start; padding stays behind."""
    frame = torch.arange(x.shape[1], device=x.device)
    lengths = (1 - paddings).sum(dim=1).long()[:, None]
    source = torch.where(frame < lengths, lengths - 1 - frame, frame)
    return x.gather(1, source[:, :, None].expand_as(x))


class FeedForward(nn.Module):
    """Batch norm, then a layer with rectified units."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_norm = MaskedBatchNorm(WIDTH)
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, paddings: Tensor, dropout_rate: float) -> Tensor:
        return F.dropout(F.relu(self.linear(self.batch_norm(x, paddings))), dropout_rate, self.training)


class DeepSpeech(nn.Module):
    """Convolutional subsampling, bidirectional LSTMs, a feed-forward layer, CTC head (Amodei et al. 2016), with
    residuals as in AlgoPerf."""

    def __init__(self) -> None:
        super().__init__()
        self.subsampling = Subsampling(CHANNELS, WIDTH)
        self.lstms = nn.ModuleList(BidirectionalLSTM() for _ in range(LSTM_LAYERS))
        self.feed_forward = FeedForward()
        self.norm = nn.LayerNorm(WIDTH)
        self.output = nn.Linear(WIDTH, len(SYMBOLS))

    def forward(self, features: Tensor, paddings: Tensor, dropout_rate: float) -> tuple[Tensor, Tensor]:
        """features: [batch, frames, bins]; paddings: [batch, frames], 1 for padding. Returns logits
        [batch, outputs, symbols] and their paddings."""
        x, paddings = self.subsampling(features, paddings, dropout_rate)
        for lstm in self.lstms:
            x = x + lstm(x, paddings)
        x = x + self.feed_forward(x, paddings, dropout_rate)
        return self.output(self.norm(x)), paddings


class MiniLibriSpeechDeepSpeechWorkload(DeepSpeechData, SpeechWorkload):
    def build_model(self) -> nn.Module:
        return DeepSpeech()
