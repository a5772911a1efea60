"""mini_ogbg: labels against brute force, masks, the network's symmetries, and the metric against OGB's definition."""

from itertools import combinations, islice, permutations

import networkx as nx
import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from miniperf import spec
from miniperf.workloads.ogbg import data as ogbg
from miniperf.workloads.ogbg.pytorch import MiniOgbgWorkload

SMALL = {"train": 200, "validation": 50, "test": 30}
EVAL = spec.ForwardPassMode.EVAL


@pytest.fixture(scope="module")
def workload(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIPERF_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(ogbg, "GRAPHS", SMALL)
        made = MiniOgbgWorkload()
        made.init_model_fn([0, 0])
        assert made.num_train_examples == 200
        yield made


@pytest.fixture(scope="module")
def graphs():
    rng = np.random.RandomState(1)
    return [ogbg.random_graph(rng) for _ in range(60)]


def logits_of(workload, model, batch):
    return workload.model_fn(model, batch, None, EVAL, [0, 0], False)[0]


def train(workload, steps, key):
    model, _ = workload.init_model_fn(key)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    queue = workload._build_input_queue(key, "train", "", 32)
    losses = []
    for step in range(steps):
        batch = next(queue)
        logits, _ = workload.model_fn(model, batch, None, spec.ForwardPassMode.TRAIN, [step, 0], True, 0.1)
        result = workload.loss_fn(batch["targets"], logits, batch["weights"])
        loss = result["summed"] / result["n_valid_examples"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# The data. Each question again, by brute force on the adjacency matrix.


def distances(graph: nx.Graph) -> np.ndarray:
    """Floyd and Warshall."""
    result = np.full((len(graph), len(graph)), np.inf)
    np.fill_diagonal(result, 0)
    for a, b in graph.edges:
        result[a, b] = result[b, a] = 1
    for middle in range(len(graph)):
        result = np.minimum(result, result[:, [middle]] + result[[middle], :])
    return result


def odd_closed_walk(graph: nx.Graph) -> bool:
    adjacency = nx.to_numpy_array(graph, nodelist=range(len(graph)), weight=None)
    power = reach = adjacency
    for _ in range(len(graph) // 2):
        power = np.minimum(power @ adjacency @ adjacency, 1)
        reach = reach + power
    return bool(np.trace(reach) > 0)


def without(graph: nx.Graph, edge_type: int) -> nx.Graph:
    kept = graph.copy()
    kept.remove_edges_from([(a, b) for a, b, t in graph.edges(data="type") if t == edge_type])
    return kept


def matched(graph: nx.Graph, left: frozenset) -> bool:
    if not left:
        return True
    node = min(left)
    return any(matched(graph, left - {node, other}) for other in graph[node] if other in left)


def typed_bridge(graph: nx.Graph) -> bool:
    for a, b, edge_type in graph.edges(data="type"):
        cut = graph.copy()
        cut.remove_edge(a, b)
        if edge_type == 0 and graph.nodes[a]["type"] * graph.nodes[b]["type"] == 0 and np.isinf(distances(cut)[a, b]):
            return True
    return False


def typed_path(graph: nx.Graph) -> bool:
    return any(
        [graph.nodes[node]["type"] for node in (a, b, c)] == [0, 1, 2]
        and all(graph.has_edge(*pair) and graph.edges[pair]["type"] != 0 for pair in ((a, b), (b, c)))
        for a, b, c in permutations(graph, 3)
    )


def lone_node(graph: nx.Graph) -> bool:
    types = np.array([graph.nodes[node]["type"] for node in range(len(graph))])
    near = distances(graph)[:, types == 1] <= 2
    return bool((~near.any(axis=1) & (types == 0)).any())


def typed_star(graph: nx.Graph) -> bool:
    return any(
        graph.nodes[node]["type"] == 0
        and all(graph.has_edge(node, other) and graph.edges[node, other]["type"] != 0 for other in others)
        for node in graph
        for others in combinations(graph, 3)
    )


BRUTE_FORCE = {
    nx.is_bipartite: lambda graph: not odd_closed_walk(graph),
    ogbg.is_wide: lambda graph: distances(graph)[np.isfinite(distances(graph))].max() >= 7,
    ogbg.has_perfect_matching: lambda graph: len(graph) % 2 == 0 and matched(graph, frozenset(graph)),
    ogbg.has_odd_cycle: lambda graph: odd_closed_walk(without(graph, 0)),
    ogbg.has_typed_bridge: typed_bridge,
    ogbg.has_typed_path: typed_path,
    ogbg.has_lone_node: lone_node,
    ogbg.has_typed_star: typed_star,
}


@pytest.mark.parametrize("task", ogbg.TASKS, ids=lambda task: task.__name__)
def test_a_label_is_what_brute_force_finds(task, graphs):
    answers = [bool(task(graph)) for graph in graphs]
    assert answers == [bool(BRUTE_FORCE[task](graph)) for graph in graphs]
    assert 5 <= sum(answers) <= 55  # both answers occur


def test_graphs_vary_and_are_simple(graphs):
    assert min(len(graph) for graph in graphs) <= 8
    assert max(len(graph) for graph in graphs) >= 22
    for graph in graphs:
        assert sorted(graph) == list(range(len(graph)))
        assert graph.number_of_edges() <= ogbg.MAX_EDGES
        assert nx.number_of_selfloops(graph) == 0


def test_stored_graphs_have_the_stored_labels(workload):
    """Rebuilt from the padded columns; the share of missing labels is as set."""
    split = workload.splits["validation"]
    for i in range(50):
        graph = nx.empty_graph(int(split["num_nodes"][i]))
        for node in graph:
            graph.nodes[node]["type"] = int(split["node_types"][i, node])
        for j in range(int(split["num_edges"][i])):
            graph.add_edge(*split["ends"][i, j].tolist(), type=int(split["edge_types"][i, j]))
        assert graph.number_of_edges() == split["num_edges"][i]
        for task, label in zip(ogbg.TASKS, split["targets"][i].tolist()):
            assert np.isnan(label) or bool(label) == bool(task(graph))
    assert np.isnan(workload.splits["train"]["targets"]).mean() == pytest.approx(ogbg.MISSING_SHARE, abs=0.04)


def test_data_is_generated_alike_every_time(monkeypatch):
    monkeypatch.setattr(ogbg, "GRAPHS", {"train": 30})
    one, two = ogbg.generate(), ogbg.generate()
    for name, column in one.items():
        assert len(column) == 30
        np.testing.assert_array_equal(column, two[name])


# Batches and masks.


def batch_of(workload, rows):
    weights = np.ones(len(rows["num_nodes"]), np.float32)
    return workload.place(workload.collate({**rows, "weights": weights}, None))


def test_a_batch_holds_the_real_nodes_and_edges_only(workload):
    rows = {name: column[:5] for name, column in workload.splits["train"].items()}
    joined = workload.place(ogbg.join(rows))
    assert len(joined.nodes) == rows["num_nodes"].sum()
    assert len(joined.edges) == 2 * rows["num_edges"].sum() == len(joined.senders)
    assert torch.equal(joined.graph_of_node[joined.senders], joined.graph_of_edge)
    assert torch.equal(joined.graph_of_node[joined.receivers], joined.graph_of_edge)
    first = int(rows["num_nodes"][:3].sum())
    there = joined.graph_of_edge == 3
    pairs = set(zip((joined.senders[there] - first).tolist(), (joined.receivers[there] - first).tolist()))
    stored = {tuple(pair) for pair in rows["ends"][3, : rows["num_edges"][3]].tolist()}
    assert pairs == stored | {(b, a) for a, b in stored}


def test_an_empty_graph_changes_nothing(workload):
    model, _ = workload.init_model_fn([1, 0])
    _, last = islice(workload._build_input_queue([0, 0], "validation", "", 40), 2)
    assert last["weights"][10:].sum() == 0
    assert last["inputs"].graph_of_node.max() == 9
    rows = {name: column[40:] for name, column in workload.splits["validation"].items()}
    real = batch_of(workload, rows)
    padded_logits, logits = logits_of(workload, model, last), logits_of(workload, model, real)
    assert padded_logits.isfinite().all()
    torch.testing.assert_close(padded_logits[:10], logits)
    parts = [workload.evaluate_batch(model, batch, out) for batch, out in ((last, padded_logits), (real, logits))]
    one, other = (workload.metrics([part], 10) for part in parts)
    assert one == pytest.approx(other, rel=1e-5)


def test_a_missing_label_changes_nothing(workload):
    """Neither the loss nor a gradient nor the metric: as if the answer had been either."""
    rows = {name: column[:16] for name, column in workload.splits["train"].items()}
    rows["targets"] = rows["targets"].copy()
    rows["targets"][3] = float("nan")
    batch = batch_of(workload, rows)
    assert batch["targets"].isfinite().all()
    assert ((batch["weights"] == 0).numpy() == np.isnan(rows["targets"])).all()
    results = []
    for answer in (0.0, 1.0, 7.0):
        model, _ = workload.init_model_fn([1, 0])
        targets = torch.where(batch["weights"] > 0, batch["targets"], answer)
        logits = model(batch["inputs"], 0.0)
        loss = workload.loss_fn(targets, logits, batch["weights"])
        loss["summed"].backward()
        assert loss["n_valid_examples"] == (~np.isnan(rows["targets"])).sum()
        part = workload.evaluate_batch(model, {**batch, "targets": targets}, logits.detach())
        gradients = [p.grad for p in model.parameters()]
        results.append((loss["summed"].item(), workload.metrics([part], 16), gradients))
    for other in results[1:]:
        assert other[:2] == results[0][:2]
        assert all(torch.equal(a, b) for a, b in zip(other[2], results[0][2]))
    # The graph without any label contributes no gradient at all: only its own logits would, and they are masked.
    logits = torch.zeros(16, len(ogbg.TASKS), requires_grad=True)
    workload.loss_fn(batch["targets"], logits, batch["weights"])["summed"].backward()
    assert torch.equal(logits.grad != 0, batch["weights"] > 0)


def test_the_loss_is_summed_over_labels(workload):
    labels, logits = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [2.0, float("inf")]])
    result = workload.loss_fn(labels, logits, torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
    assert result["summed"].item() == pytest.approx(2 * np.log(2) + np.log1p(np.exp(-2)))
    assert result["n_valid_examples"] == 3
    assert result["per_example"].shape == (2, 2)
    smoothed = workload.loss_fn(labels[:1], logits[:1] + 1, None, label_smoothing=0.2)  # targets .9 and .1
    expected = 2 * np.log1p(np.exp(1)) - 0.9 - 0.1
    assert smoothed["summed"].item() == pytest.approx(expected)


# The network.


def test_the_order_of_nodes_and_edges_does_not_matter(workload):
    model, _ = workload.init_model_fn([1, 0])
    rows = {name: column[:20].copy() for name, column in workload.splits["train"].items()}
    before = logits_of(workload, model, batch_of(workload, rows))
    rng = np.random.RandomState(0)
    for i in range(20):
        nodes, edges = int(rows["num_nodes"][i]), int(rows["num_edges"][i])
        place, order = rng.permutation(nodes), rng.permutation(edges)
        rows["node_types"][i, place] = rows["node_types"][i, :nodes].copy()
        rows["ends"][i, :edges] = place[rows["ends"][i, :edges]][order][:, ::-1]
        rows["edge_types"][i, :edges] = rows["edge_types"][i, :edges][order]
    after = logits_of(workload, model, batch_of(workload, rows))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    rows["edge_types"][:] = (rows["edge_types"] + 1) % ogbg.EDGE_TYPES  # while another graph is another graph
    assert (logits_of(workload, model, batch_of(workload, rows)) - before).abs().max() > 1e-2


def test_graphs_of_a_batch_do_not_meet(workload):
    model, _ = workload.init_model_fn([1, 0])
    rows = {name: column[:12] for name, column in workload.splits["train"].items()}
    together = logits_of(workload, model, batch_of(workload, rows))
    alone = [
        logits_of(workload, model, batch_of(workload, {name: column[[i]] for name, column in rows.items()}))
        for i in range(12)
    ]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-4, atol=1e-5)


def test_the_loss_falls_and_one_seed_gives_one_run(workload):
    losses = train(workload, 60, [2, 0])
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
    assert train(workload, 10, [2, 0]) == losses[:10]
    assert train(workload, 10, [2, 1]) != losses[:10]


# The metric.


def test_mean_average_precision_of_hand_made_cases():
    targets = np.array([[1, 0, 1, 0], [0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 1, 1]], np.float32)
    scores = np.array([[4, 1, 0.1, 0], [3, 2, 0.4, 0], [2, 3, 0.3, 0], [1, 4, 0.2, 0]], np.float32)
    known = np.ones((4, 4), bool)
    # Task 1: found at ranks 1 and 3. Task 2 has no positive: left out. Task 3: at ranks 1, 3, 4. Task 4: all tied.
    by_hand = [(1 + 2 / 3) / 2, (1 + 2 / 3 + 3 / 4) / 3, 2 / 4]
    assert ogbg.mean_average_precision(targets, scores, known) == pytest.approx(np.mean(by_hand))
    known[2, 2] = known[[0, 2], 3] = False  # now task 3 has no negative, nor has task 4
    assert ogbg.mean_average_precision(targets, scores, known) == pytest.approx(by_hand[0])
    assert np.isnan(ogbg.mean_average_precision(targets, scores, np.zeros((4, 4), bool)))


def test_mean_average_precision_is_that_of_ogb(workload):
    """OGB: over tasks with a positive and a negative, scikit-learn's average precision of what is labelled."""
    rng = np.random.RandomState(3)
    targets = (rng.rand(200, 6) < [0.05, 0.2, 0.5, 0.9, 0, 1]).astype(np.float32)
    targets[rng.rand(200, 6) < 0.3] = np.nan
    scores = rng.randn(200, 6).astype(np.float32)
    expected = []
    for i in range(6):
        if (targets[:, i] == 1).any() and (targets[:, i] == 0).any():
            there = targets[:, i] == targets[:, i]
            expected.append(average_precision_score(targets[there, i], scores[there, i]))
    assert len(expected) == 4
    mine = ogbg.mean_average_precision(np.nan_to_num(targets), scores, ~np.isnan(targets))
    assert mine == pytest.approx(np.mean(expected), rel=1e-12)


def test_perfect_answers_are_perfect(workload):
    parts = []
    for batch in islice(workload._build_input_queue([0, 0], "validation", "", 40), 2):
        parts.append(workload.evaluate_batch(None, batch, 50 * (2 * batch["targets"] - 1)))
    result = workload.metrics(parts, 50)
    assert result["mean_average_precision"] == 1
    assert result["loss"] == pytest.approx(0, abs=1e-6)


def test_evaluation_does_not_depend_on_the_batch_size(workload):
    model, _ = workload.init_model_fn([1, 0])
    results = []
    for size in (7, 50, 64):
        workload._eval_iters.clear()
        results.append(workload._eval_model_on_split("validation", 50, size, model, None, [0, 0], ""))
    workload._eval_iters.clear()
    assert results[0] == pytest.approx(results[1], rel=1e-5)
    assert results[2] == pytest.approx(results[1], rel=1e-5)
