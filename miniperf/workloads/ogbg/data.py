"""mini_ogbg: which properties has a graph? A message-passing network with edge, node and global updates.

Data: graphs of 6 to 24 nodes from a mix of random families, a few of their edges moved, with random types of nodes and
edges, as atoms and bonds have. As in ogbg-molpcba the labels are several yes-or-no questions, of which a share is not
answered (NaN); here networkx answers them exactly. Those about the whole graph (cycles, width, matchings) need more
than three rounds of messages can gather, so they are learned in part, from what correlates with them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
from sklearn.metrics import average_precision_score

from miniperf import spec
from miniperf.cache import cached
from miniperf.workloads.base import MiniWorkload, Split

MIN_NODES, MAX_NODES, MAX_EDGES = 6, 24, 60
NODE_TYPES, EDGE_TYPES = 4, 3
GRAPHS = {"train": 4000, "validation": 500, "test": 500}
MISSING_SHARE = 0.2


def _grid(nodes: int, rng: np.random.RandomState) -> nx.Graph:
    width = rng.randint(2, 5)
    grid = nx.convert_node_labels_to_integers(nx.grid_2d_graph(-(-nodes // width), width))
    return grid.subgraph(range(nodes))


def _two_sided(nodes: int, rng: np.random.RandomState) -> nx.Graph:
    side = rng.randint(nodes // 3, nodes // 2 + 1)
    return nx.bipartite.random_graph(side, nodes - side, rng.uniform(2, 4.5) / nodes, seed=rng)


FAMILIES: list[Callable[[int, np.random.RandomState], nx.Graph]] = [
    lambda nodes, rng: nx.gnp_random_graph(nodes, rng.uniform(1.5, 3.5) / nodes, seed=rng),
    lambda nodes, rng: nx.random_labeled_tree(nodes, seed=rng),
    lambda nodes, rng: nx.barabasi_albert_graph(nodes, rng.randint(1, 3), seed=rng),
    lambda nodes, rng: nx.watts_strogatz_graph(nodes, 2 * rng.randint(1, 3), rng.uniform(0.05, 0.5), seed=rng),
    lambda nodes, rng: nx.random_geometric_graph(nodes, rng.uniform(0.9, 1.3) / np.sqrt(nodes), seed=rng),
    lambda nodes, rng: nx.random_regular_graph(3, nodes - nodes % 2, seed=rng),
    _grid,
    _two_sided,
]


def random_graph(rng: np.random.RandomState) -> nx.Graph:
    """A graph with nodes 0, 1, ... and a `type` of each node and edge. Its nodes come in a random order."""
    nodes = rng.randint(MIN_NODES, MAX_NODES + 1)
    drawn = FAMILIES[rng.randint(len(FAMILIES))](nodes, rng)
    graph = nx.empty_graph(nodes)
    place = rng.permutation(nodes)
    edges = rng.permutation([(place[a], place[b]) for a, b in drawn.edges]).reshape(-1, 2)
    moved = rng.randint(0, 4)
    graph.add_edges_from(edges[moved:MAX_EDGES].tolist())
    graph.add_edges_from(rng.choice(nodes, size=2, replace=False).tolist() for _ in range(moved))
    for node in graph:
        graph.nodes[node]["type"] = int(rng.randint(NODE_TYPES))
    for edge in graph.edges:
        graph.edges[edge]["type"] = int(rng.randint(EDGE_TYPES))
    return graph


def is_wide(graph: nx.Graph) -> bool:
    """The longest of the shortest paths has at least 7 edges."""
    return max(max(lengths.values()) for _, lengths in nx.all_pairs_shortest_path_length(graph)) >= 7


def has_perfect_matching(graph: nx.Graph) -> bool:
    return 2 * len(nx.max_weight_matching(graph, maxcardinality=True)) == len(graph)


def has_odd_cycle(graph: nx.Graph) -> bool:
    """There is a cycle of odd length without an edge of type 0."""
    kept = [(a, b) for a, b, edge_type in graph.edges(data="type") if edge_type != 0]
    return not nx.is_bipartite(nx.Graph(kept))


def has_typed_bridge(graph: nx.Graph) -> bool:
    """Without some edge of type 0 its ends, one of them a node of type 0, are not connected."""
    types = nx.get_node_attributes(graph, "type")
    return any(graph.edges[a, b]["type"] == 0 and 0 in (types[a], types[b]) for a, b in nx.bridges(graph))


def has_typed_path(graph: nx.Graph) -> bool:
    """A node of type 1 has neighbours of the types 0 and 2 over edges that are not of type 0."""
    types = nx.get_node_attributes(graph, "type")

    def reached(node: int) -> set[int]:
        return {types[other] for other in graph[node] if graph.edges[node, other]["type"] != 0}

    return any(types[node] == 1 and {0, 2} <= reached(node) for node in graph)


def has_lone_node(graph: nx.Graph) -> bool:
    """Some node of type 0 is more than two edges away from every node of type 1."""
    types = nx.get_node_attributes(graph, "type")
    return any(
        all(types[other] != 1 for other in nx.single_source_shortest_path_length(graph, node, cutoff=2))
        for node in graph
        if types[node] == 0
    )


def has_typed_star(graph: nx.Graph) -> bool:
    """A node of type 0 has at least three edges that are not of type 0."""
    degrees = graph.edge_subgraph(edge for edge in graph.edges if graph.edges[edge]["type"] != 0).degree
    return any(degree >= 3 and graph.nodes[node]["type"] == 0 for node, degree in degrees)


TASKS: list[Callable[[nx.Graph], bool]] = [
    nx.is_bipartite,
    is_wide,
    has_perfect_matching,
    has_odd_cycle,
    has_typed_bridge,
    has_typed_path,
    has_lone_node,
    has_typed_star,
]


def generate() -> dict[str, np.ndarray]:
    """All graphs, padded with zeros: node_types [count, MAX_NODES], ends [count, MAX_EDGES, 2] (each edge once),
    edge_types [count, MAX_EDGES], num_nodes and num_edges [count], and targets [count, tasks], 0, 1 or NaN."""
    rng = np.random.RandomState(0)
    count = sum(GRAPHS.values())
    node_types = np.zeros((count, MAX_NODES), np.int64)
    ends, edge_types = np.zeros((count, MAX_EDGES, 2), np.int64), np.zeros((count, MAX_EDGES), np.int64)
    num_nodes, num_edges = np.zeros(count, np.int64), np.zeros(count, np.int64)
    targets = np.zeros((count, len(TASKS)), np.float32)
    for i in range(count):
        graph = random_graph(rng)
        num_nodes[i], num_edges[i] = len(graph), graph.number_of_edges()
        node_types[i, : len(graph)] = [graph.nodes[node]["type"] for node in range(len(graph))]
        for j, (a, b, edge_type) in enumerate(graph.edges(data="type")):
            ends[i, j], edge_types[i, j] = (a, b), edge_type
        targets[i] = [task(graph) for task in TASKS]
    targets[rng.rand(*targets.shape) < MISSING_SHARE] = np.nan
    sizes = {"num_nodes": num_nodes, "num_edges": num_edges}
    return {"node_types": node_types, "ends": ends, "edge_types": edge_types, **sizes, "targets": targets}


class Graphs(NamedTuple):
    """Several graphs as one, in numpy or a framework. Each undirected edge is there in both directions."""

    nodes: Any  # [nodes], types
    edges: Any  # [edges], types
    senders: Any  # [edges], node indices
    receivers: Any  # [edges]
    graph_of_node: Any  # [nodes]
    graph_of_edge: Any  # [edges]
    num_graphs: int


def join(rows: Split) -> Graphs:
    """The graphs of some rows, without their padding."""
    num_nodes, num_edges = rows["num_nodes"], rows["num_edges"]
    real_node = np.arange(rows["node_types"].shape[1]) < num_nodes[:, None]
    real_edge = np.arange(rows["edge_types"].shape[1]) < num_edges[:, None]
    first_node = num_nodes.cumsum(0) - num_nodes
    tails, heads = (rows["ends"] + first_node[:, None, None])[real_edge].T
    graphs = np.arange(len(num_nodes))
    return Graphs(
        nodes=rows["node_types"][real_node],
        edges=np.tile(rows["edge_types"][real_edge], 2),
        senders=np.concatenate([tails, heads]),
        receivers=np.concatenate([heads, tails]),
        graph_of_node=graphs.repeat(num_nodes),
        graph_of_edge=np.tile(graphs.repeat(num_edges), 2),
        num_graphs=len(num_nodes),
    )


def mean_average_precision(targets: np.ndarray, scores: np.ndarray, known: np.ndarray) -> float:
    """As OGB defines it (Hu et al. 2020): the mean over the tasks that have both a positive and a negative example.

    Args:
        targets: [examples, tasks], 0 or 1.
        scores: [examples, tasks], higher where more likely.
        known: [examples, tasks], bool; the other targets are left out.

    Returns:
        NaN if there is no such task.
    """
    values = []
    for target, score, there in zip(targets.T, scores.T, known.T, strict=True):
        if 0 < target[there].sum() < there.sum():
            values.append(average_precision_score(target[there], score[there]))
    return float(np.mean(values)) if values else float("nan")


class OgbgData(MiniWorkload):
    batch_size = 8
    step_hint = 4000
    target_metric_name = "mean_average_precision"
    validation_target_value = 0.85725
    test_target_value = 0.88004
    loss_type = spec.LossType.SOFTMAX_CROSS_ENTROPY  # so officially, though each label has a sigmoid of its own
    eval_batch_size = 500

    def load_splits(self) -> dict[str, Split]:
        columns = cached("ogbg_1", generate)
        bounds = np.cumsum(list(GRAPHS.values()))[:-1]
        parts = {name: np.split(column, bounds) for name, column in columns.items()}
        return {split: {name: part[i] for name, part in parts.items()} for i, split in enumerate(GRAPHS)}

    def collate(self, rows: Split, rng: np.random.RandomState | None) -> dict[str, Any]:
        """`weights` become those of the labels, [batch, tasks]: 0 where the label is missing or the graph padding."""
        known = ~np.isnan(rows["targets"]) & (rows["weights"][:, None] > 0)
        targets = np.nan_to_num(rows["targets"], nan=0.0)
        return {"inputs": join(rows), "targets": targets, "weights": known.astype(np.float32)}

    def evaluate_batch(self, model: Any, batch: dict[str, Any], logits: Any) -> dict[str, Any]:
        arrays = {name: np.asarray(batch[name]) for name in ("targets", "weights")}
        return {**arrays, "logits": np.asarray(logits), "loss": float(self.losses(batch, logits)["summed"])}

    def metrics(self, parts: list[dict[str, Any]], num_examples: int) -> dict[str, float]:
        targets, logits, weights = (np.concatenate([p[k] for p in parts]) for k in ("targets", "logits", "weights"))
        loss = sum(part["loss"] for part in parts) / weights.sum()
        return {"mean_average_precision": mean_average_precision(targets, logits, weights > 0), "loss": float(loss)}
