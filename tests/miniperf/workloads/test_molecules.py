"""From molecules to the graphs of mini_ogbg, against chemistry by hand; and its metric, against OGB's definition."""

import numpy as np
import pandas as pd
import pytest
from rdkit import Chem
from sklearn.metrics import average_precision_score

from miniperf.workloads.ogbg import data as ogbg


def test_the_graph_of_aspirin():
    """Carboxyl, ring and ester: C9H8O4."""
    nodes, ends, edges = ogbg.graph(Chem.MolFromSmiles("CC(=O)Oc1ccccc1C(=O)O"))
    elements = [ogbg.ELEMENTS[i] for i in nodes[:, 0]]
    assert elements == list("CCOO" + 6 * "C" + "COO")
    assert nodes[:, 1].tolist() == np.bincount(ends.ravel()).tolist() == [1, 3, 1, 2, 3, 2, 2, 2, 2, 3, 3, 1, 1]
    assert nodes[:, 2].tolist() == [3, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 1]
    assert set(nodes[:, 3]) == {1}  # no charge
    assert nodes[:, 4].tolist() == [0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 0, 0, 0]
    bonds = {tuple(sorted(pair)): tuple(kind) for pair, kind in zip(ends.tolist(), edges.tolist(), strict=True)}
    single, double, aromatic = (0, 0), (1, 0), (3, 1)
    ring = {(4, 5), (5, 6), (6, 7), (7, 8), (8, 9), (4, 9)}
    assert {pair for pair, kind in bonds.items() if kind == aromatic} == ring
    assert {pair for pair, kind in bonds.items() if kind == double} == {(1, 2), (10, 11)}
    assert {pair for pair, kind in bonds.items() if kind == single} == {(0, 1), (1, 3), (3, 4), (9, 10), (10, 12)}


def test_rare_atoms_are_within_the_ranges():
    nodes, _, edges = ogbg.graph(Chem.MolFromSmiles("C[N+](C)(C)CC1CC1.[Ca+2].FS(F)(F)(F)(F)F.[SiH4].[O-]C#C"))
    assert (nodes.max(axis=0) < ogbg.NODE_FEATURES).all()
    assert (edges.max(axis=0) < ogbg.EDGE_FEATURES).all()
    assert nodes[1].tolist() == [1, 4, 0, 2, 0]
    assert [1, 1] not in edges.tolist()
    assert edges.tolist().count([0, 1]) == 3  # the ring of three
    assert nodes[8].tolist() == [8, 0, 0, 2, 0]


def test_a_molecule_measured_twice_is_one(monkeypatch):
    """Under another SMILES, as a mirror image, in another assay; what is too large is left out."""
    rows = [
        ("C[C@H](N)O", 0, -2.0),
        ("C" * 31, 0, 0.0),
        ("CCO", 0, -2.9),
        ("OCC", 1, -3.1),
        ("C[C@@H](N)O", 0, -4.5),  # the mean of two mirror images is below -3
        ("C[C@@H](N)O", 2, -3.0),
    ]
    monkeypatch.setattr(ogbg, "measurements", lambda: pd.DataFrame(rows, columns=["smiles", "assay", "y"]))
    arrays = ogbg.generate()
    assert arrays["num_nodes"].tolist() == [4, 3]
    assert arrays["targets"][0, [0, 2]].tolist() == [0, 1]
    assert arrays["targets"][1, [0, 1]].tolist() == [1, 0]
    assert set(arrays["targets"][:, 3:][~np.isnan(arrays["targets"][:, 3:])]) <= {0}


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


def test_mean_average_precision_is_that_of_ogb():
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
