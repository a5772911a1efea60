"""mini_criteo1tb in PyTorch: a small DLRM."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniperf.workloads.criteo1tb.data import NUMBERS, Criteo1TbData
from miniperf.workloads.pytorch import PyTorchWorkload, summed

EMBEDDING_DIM = 16


class DLRM(nn.Module):
    """Bottom MLP for the numbers, one embedding per category, all pairwise products, top MLP (Naumov et al. 2019)."""

    def __init__(self, vocabulary_sizes: list[int]) -> None:
        super().__init__()
        dim, fields = EMBEDDING_DIM, len(vocabulary_sizes) + 1
        self.embeddings = nn.ModuleList(nn.Embedding(size, dim) for size in vocabulary_sizes)
        for table in self.embeddings:
            nn.init.normal_(table.weight, std=dim**-0.5)  # type: ignore[arg-type]
        self.bottom = nn.Sequential(nn.Linear(len(NUMBERS), 64), nn.ReLU(), nn.Linear(64, dim), nn.ReLU())
        self.top_hidden = nn.Linear(dim + fields * (fields - 1) // 2, 128)
        self.top_hidden2 = nn.Linear(128, 64)
        self.output = nn.Linear(64, 1)
        self.pairs: Tensor
        self.register_buffer("pairs", torch.triu_indices(fields, fields, offset=1), persistent=False)

    def forward(self, inputs: Tensor, dropout_rate: float) -> Tensor:
        """inputs: [batch, numbers + categories], categories as indices. Returns logits [batch]."""
        numbers, categories = inputs[:, : len(NUMBERS)], inputs[:, len(NUMBERS) :].long()
        dense = self.bottom(numbers)
        fields = torch.stack([dense, *(table(categories[:, i]) for i, table in enumerate(self.embeddings))], dim=1)
        products = (fields @ fields.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        hidden = F.relu(self.top_hidden(torch.cat([dense, products], dim=1)))
        hidden = F.dropout(F.relu(self.top_hidden2(hidden)), dropout_rate, self.training)
        return self.output(hidden).squeeze(1)


class MiniCriteo1TbWorkload(Criteo1TbData, PyTorchWorkload):
    def build_model(self) -> nn.Module:
        _ = self.splits  # the vocabularies come with the data
        return DLRM(self.vocabulary_sizes)

    def is_output_params(self, param_key: str) -> bool:
        return param_key.startswith("output.")

    def loss_fn(
        self, label_batch: Tensor, logits_batch: Tensor, mask_batch: Tensor | None = None, label_smoothing: float = 0.0
    ) -> dict[str, Tensor]:
        targets = label_batch * (1 - label_smoothing) + 0.5 * label_smoothing
        return summed(F.binary_cross_entropy_with_logits(logits_batch, targets, reduction="none"), mask_batch)
