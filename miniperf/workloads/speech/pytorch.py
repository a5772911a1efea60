"""What the speech workloads share in PyTorch: parts of their models, and CTC."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniperf.workloads.pytorch import PyTorchWorkload
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


def spec_augment(features: Tensor, paddings: Tensor) -> Tensor:
    """Bands of bins and stretches of frames set to the mean, drawn for each utterance from torch's generator.

    The draws are shares of an utterance's own length, so that padding does not change them."""
    batch, length, bins = features.shape
    kept = torch.ones_like(features, dtype=torch.bool)
    bin_index, frame_index = torch.arange(bins), torch.arange(length)
    lengths = (1 - paddings).sum(dim=1)
    for _ in range(FREQUENCY_MASKS):
        width = torch.randint(0, MAX_MASKED_BINS + 1, (batch, 1))
        start = (torch.rand(batch, 1) * (bins - width + 1)).floor()
        kept &= ~((bin_index >= start) & (bin_index < start + width))[:, None, :]
    for _ in range(TIME_MASKS):
        width = (torch.rand(batch) * MAX_MASKED_SHARE * lengths)[:, None].round()
        start = (torch.rand(batch, 1) * (lengths[:, None] - width + 1)).floor()
        kept &= ~((frame_index >= start) & (frame_index < start + width))[:, :, None]
    return features * kept


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch norm over the frames that are not padding; the others become 0."""

    # The official momentum of .001 averages over 1.3 % of the Conformer's 76,000 steps; this does so over 2,000.
    def __init__(self, features: int) -> None:
        super().__init__(features, momentum=0.04)

    def forward(self, inputs: Tensor, paddings: Tensor) -> Tensor:  # type: ignore[override]
        """inputs: [batch, frames, features]; paddings: [batch, frames], 1 for padding."""
        valid = paddings < 0.5
        outputs = torch.zeros_like(inputs)
        outputs[valid] = super().forward(inputs[valid])
        return outputs


class Subsampling(nn.Module):
    """Two convolutions of stride 2 over frames and bins, then a projection to `width`."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.linear = nn.Linear(channels * output_lengths(BINS), width)

    def forward(self, features: Tensor, paddings: Tensor, dropout_rate: float) -> tuple[Tensor, Tensor]:
        """features: [batch, frames, BINS], SpecAugment's masks upon them in training. Returns [batch, outputs, width]
        and the outputs' paddings."""
        if self.training:
            features = spec_augment(features, paddings)
        x = features[:, None]
        for conv in (self.conv1, self.conv2):
            paddings = paddings[:, ::2]
            x = F.relu(conv(x)) * (1 - paddings)[:, None, :, None]  # else the bias would leak out of the padding
        x = self.linear(x.transpose(1, 2).flatten(2))
        return F.dropout(x, dropout_rate, self.training), paddings


class SpeechWorkload(SpeechData, PyTorchWorkload):
    """Subclasses give the model, which maps features, paddings and a dropout rate to logits and their paddings."""

    def forward(self, model: nn.Module, batch: dict[str, Any], dropout_rate: float) -> tuple[Tensor, Tensor]:
        return model(*batch["inputs"], dropout_rate)

    def is_output_params(self, param_key: str) -> bool:
        return param_key.startswith("output.")

    def loss_fn(
        self,
        label_batch: Any,
        logits_batch: Any,
        mask_batch: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> dict[str, Tensor]:
        """CTC, summed over utterances. Labels are not smoothed.

        `n_valid_examples` is the number of their letters. The official loss is divided by it too where it is given no
        mask, as in official training.
        """
        del label_smoothing
        targets, target_paddings = label_batch
        logits, logit_paddings = logits_batch
        output_counts, letter_counts = ((1 - p).sum(dim=1).long() for p in (logit_paddings, target_paddings))
        losses = F.ctc_loss(
            logits.log_softmax(dim=-1).transpose(0, 1),
            targets.long(),
            output_counts.clamp(min=1),  # an example that is all padding: finite, and weighted 0
            letter_counts,
            blank=BLANK,
            reduction="none",
        )
        if mask_batch is not None:
            losses = torch.where(mask_batch > 0, losses * mask_batch, 0.0)
            letter_counts = letter_counts * (mask_batch > 0)
        return {
            "summed": losses.sum(),
            "n_valid_examples": letter_counts.sum().clamp(min=1).to(losses),
            "per_example": losses,
        }
