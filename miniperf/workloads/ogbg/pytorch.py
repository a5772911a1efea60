"""mini_ogbg in PyTorch: a message-passing network with edge, node and global updates."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniperf.workloads.ogbg.data import ASSAYS, EDGE_FEATURES, NODE_FEATURES, Graphs, OgbgData
from miniperf.workloads.pytorch import PyTorchWorkload, summed

WIDTH, ROUNDS = 48, 2


def segment_sum(values: Tensor, segments: Tensor, count: int) -> Tensor:
    """[count, width]: row i is the sum of the values [n, width] whose segment [n] is i."""
    return values.new_zeros(count, values.shape[1]).index_add_(0, segments, values)


class Update(nn.Module):
    """Dense layer, layer norm, ReLU and dropout on several inputs side by side, added to the first of them."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.dense, self.norm = nn.Linear(inputs * WIDTH, WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, inputs: list[Tensor], dropout_rate: float) -> Tensor:
        hidden = F.relu(self.norm(self.dense(torch.cat(inputs, dim=1))))
        return inputs[0] + F.dropout(hidden, dropout_rate, self.training)


class Round(nn.Module):
    """A graph network block (Battaglia et al. 2018, arXiv 1806.01261, Algorithm 1).

    A node sees two sums: of the edges that leave it, and of the edges that reach it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.edge, self.node, self.whole = Update(4), Update(4), Update(3)

    def forward(
        self, graphs: Graphs, nodes: Tensor, edges: Tensor, wholes: Tensor, dropout_rate: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        sent, received = nodes.index_select(0, graphs.senders), nodes.index_select(0, graphs.receivers)
        edges = self.edge([edges, sent, received, wholes.index_select(0, graphs.graph_of_edge)], dropout_rate)
        leaving, reaching = (segment_sum(edges, ends, len(nodes)) for ends in (graphs.senders, graphs.receivers))
        nodes = self.node([nodes, leaving, reaching, wholes.index_select(0, graphs.graph_of_node)], dropout_rate)
        node_sum = segment_sum(nodes, graphs.graph_of_node, graphs.num_graphs)
        edge_sum = segment_sum(edges, graphs.graph_of_edge, graphs.num_graphs)
        return nodes, edges, self.whole([wholes, node_sum, edge_sum], dropout_rate)


class GNN(nn.Module):
    """Embedded features, summed, rounds of messages, and the answers read off the state of the whole graph."""

    def __init__(self) -> None:
        super().__init__()
        self.node_embedding = nn.Embedding(sum(NODE_FEATURES), WIDTH)
        self.edge_embedding = nn.Embedding(sum(EDGE_FEATURES), WIDTH)
        self.rounds = nn.ModuleList(Round() for _ in range(ROUNDS))
        self.decoder = nn.Linear(WIDTH, ASSAYS)

    def forward(self, graphs: Graphs, dropout_rate: float) -> Tensor:
        """Returns logits [graphs, assays]."""
        nodes, edges = self.node_embedding(graphs.nodes).sum(1), self.edge_embedding(graphs.edges).sum(1)
        wholes = nodes.new_zeros(graphs.num_graphs, WIDTH)
        for layer in self.rounds:
            nodes, edges, wholes = layer(graphs, nodes, edges, wholes, dropout_rate)
        return self.decoder(wholes)


class MiniOgbgWorkload(OgbgData, PyTorchWorkload):
    def build_model(self) -> nn.Module:
        return GNN()

    def is_output_params(self, param_key: str) -> bool:
        return param_key.startswith("decoder.")

    def loss_fn(
        self, label_batch: Tensor, logits_batch: Tensor, mask_batch: Tensor | None = None, label_smoothing: float = 0.0
    ) -> dict[str, Tensor]:
        """Summed over the labels of weight 1, whose number is `n_valid_examples`."""
        # Smoothed towards 1 / tasks, as officially.
        targets = label_batch * (1 - label_smoothing) + label_smoothing / label_batch.shape[1]
        return summed(F.binary_cross_entropy_with_logits(logits_batch, targets, reduction="none"), mask_batch)
