"""mini_finewebedu_lm in PyTorch: the decoder of `model.py`, small."""

from typing import Any

from torch import Tensor, nn

from miniperf.workloads.finewebedu_lm.data import MiniFinewebEduLmData
from miniperf.workloads.finewebedu_lm.model import Decoder, token_losses
from miniperf.workloads.pytorch import PyTorchWorkload, summed


class MiniFinewebEduLmWorkload(MiniFinewebEduLmData, PyTorchWorkload):
    def build_model(self) -> nn.Module:
        return Decoder(self.sizes)

    def forward(self, model: nn.Module, batch: dict[str, Any], dropout_rate: float) -> Tensor:
        """The logits; there is no dropout, whatever its rate."""
        return model(batch["inputs"])

    def is_output_params(self, param_key: str) -> bool:
        return param_key == "embedding.weight"

    def loss_fn(
        self, label_batch: Tensor, logits_batch: Tensor, mask_batch: Tensor | None = None, label_smoothing: float = 0.0
    ) -> dict[str, Tensor]:
        """Over tokens: labels and mask are [batch, length], `n_valid_examples` counts tokens, as officially."""
        return summed(token_losses(logits_batch, label_batch, label_smoothing), mask_batch)
