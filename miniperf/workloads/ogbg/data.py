"""mini_ogbg: on which proteins does a molecule act? A message-passing network with edge, node and global updates.

Data: molecules and their measured activities in 30 assays of ChEMBL, from the package `MoleculeACE`. (MIT; van Tilborg
et al. 2022, https://doi.org/10.1021/acs.jcim.2c01073; measurements: ChEMBL, CC BY-SA 3.0.)

As in ogbg-molpcba a node is an atom, an edge a bond, and each assay is a yes-or-no question: active at 1 uM or less.
Most molecules were measured in one assay only. Of the pairs that nobody measured some, drawn at random, are presumed
inactive, as in virtual screening. A molecule made for one protein seldom acts on another. All others are missing (NaN).
So positives are rare, as in ogbg-molpcba. Measurements alone (1.3 a molecule) teach the network little. With the line
at 100 nM, the mean average precision is 0.63 after 800 batches of 16, where chance gives 0.50.

The network sees no stereochemistry, so stereoisomers are one molecule here, and several measurements of it in an assay
are their mean. Splits are random by molecule, where ogbg-molpcba holds out whole scaffolds. With a few hundred
molecules an assay, whole scaffolds would make validation and test two different tasks.
"""

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rdkit import Chem
from sklearn.metrics import average_precision_score

from miniperf import spec
from miniperf.cache import cached
from miniperf.data_packages import folder_of
from miniperf.workloads.base import MiniWorkload, Split

PACKAGE = "MoleculeACE==3.0.0"
EVERY = 17  # of so many molecules one is for validation, and of twice as many one for test
MAX_ATOMS = 30  # hydrogens are counted as a feature of the atoms that bear them
ACTIVE = -3.0  # on the package's scale, -log10 of nanomoles per litre
PRESUMED_SHARE = 0.3  # of what was not measured
ASSAYS = 30

ELEMENTS = ("C", "N", "O", "F", "S", "Cl", "Br", "I")  # any other is one more type
BONDS = (Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE, Chem.BondType.AROMATIC)
# The number of values of each feature of a node: element, neighbours, hydrogens, charge (-1, 0, 1), and whether it is
# in no ring, in a ring, or aromatic; of an edge: type of bond, in a ring or not.
NODE_FEATURES = (len(ELEMENTS) + 1, 5, 4, 3, 3)
EDGE_FEATURES = (len(BONDS), 2)


def measurements() -> pd.DataFrame:
    """All that was measured: `smiles`, `y` (-log10 nM) and `assay`, from 0 to 29 in the order of ChEMBL's names.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    folder = folder_of("MoleculeACE", "mini_ogbg needs", f"--no-deps {PACKAGE}")
    paths = sorted((folder / "Data" / "benchmark_data").glob("CHEMBL*.csv"))
    tables = [pd.read_csv(path, usecols=["smiles", "y"]).assign(assay=i) for i, path in enumerate(paths)]
    return pd.concat(tables, ignore_index=True)


class Molecule(NamedTuple):
    """The graph of one molecule, hydrogens left out."""

    nodes: np.ndarray  # [atoms, 5], a value of each of NODE_FEATURES
    ends: np.ndarray  # [bonds, 2], atoms; each bond once
    edges: np.ndarray  # [bonds, 2], a value of each of EDGE_FEATURES


def graph(molecule: Chem.Mol) -> Molecule:
    """Atoms and bonds in RDKit's order. A value beyond an end of its range becomes that end."""
    nodes = [
        (
            ELEMENTS.index(atom.GetSymbol()) if atom.GetSymbol() in ELEMENTS else len(ELEMENTS),
            min(atom.GetDegree(), 4),
            min(atom.GetTotalNumHs(), 3),
            min(max(atom.GetFormalCharge(), -1), 1) + 1,
            2 if atom.GetIsAromatic() else int(atom.IsInRing()),
        )
        for atom in molecule.GetAtoms()
    ]
    bonds = list(molecule.GetBonds())
    ends = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in bonds]
    edges = [(BONDS.index(bond.GetBondType()), int(bond.IsInRing())) for bond in bonds]
    return Molecule(*(np.array(part, np.uint8) for part in (nodes, ends, edges)))


def pad(parts: list[np.ndarray]) -> np.ndarray:
    """[count, longest, ...], filled up with zeros."""
    padded = np.zeros((len(parts), max(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    for row, part in zip(padded, parts, strict=True):
        row[: len(part)] = part
    return padded


def generate() -> dict[str, np.ndarray]:
    """All molecules of at most MAX_ATOMS in the order of the package's files, padded with zeros.

    The nodes, ends and edges are as in `Molecule`, with a dimension of molecules before theirs. Further there are
    num_nodes and num_edges [count], and targets [count, assays]: 1 active, 0 inactive or presumed so, NaN missing.
    """
    molecules: dict[str, Molecule] = {}
    measured: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for smiles, rows in measurements().groupby("smiles", sort=False):
        parsed = Chem.MolFromSmiles(smiles)
        if parsed.GetNumAtoms() <= MAX_ATOMS:
            name = Chem.MolToSmiles(parsed, isomericSmiles=False)
            molecules.setdefault(name, graph(parsed))
            for assay, y in zip(rows["assay"], rows["y"], strict=True):
                measured[name][assay].append(y)
    presumed = np.random.RandomState(0).rand(len(molecules), ASSAYS) < PRESUMED_SHARE
    targets = np.where(presumed, 0, np.nan).astype(np.float32)
    for row, activities in zip(targets, measured.values(), strict=True):
        for assay, values in activities.items():
            row[assay] = np.mean(values) >= ACTIVE
    nodes, ends, edges = (list(parts) for parts in zip(*molecules.values(), strict=True))
    sizes = {"num_nodes": np.array([len(part) for part in nodes]), "num_edges": np.array([len(part) for part in edges])}
    return {"nodes": pad(nodes), "ends": pad(ends), "edges": pad(edges), **sizes, "targets": targets}


class Graphs(NamedTuple):
    """Several graphs as one, in numpy or a framework. Each undirected edge is there in both directions."""

    nodes: Any  # [nodes, features]; numbered through: the values of a feature follow those of the one before it
    edges: Any  # [edges, features], likewise
    senders: Any  # [edges], node indices
    receivers: Any  # [edges]
    graph_of_node: Any  # [nodes]
    graph_of_edge: Any  # [edges]
    num_graphs: int


def _first_values(sizes: tuple[int, ...]) -> np.ndarray:
    return np.cumsum((0, *sizes[:-1]))


def join(rows: Split) -> Graphs:
    """The graphs of some rows, without their padding."""
    num_nodes, num_edges = rows["num_nodes"], rows["num_edges"]
    real_node = np.arange(rows["nodes"].shape[1]) < num_nodes[:, None]
    real_edge = np.arange(rows["edges"].shape[1]) < num_edges[:, None]
    first_node = num_nodes.cumsum(0) - num_nodes
    tails, heads = (rows["ends"] + first_node[:, None, None])[real_edge].T
    graphs = np.arange(len(num_nodes))
    return Graphs(
        nodes=rows["nodes"][real_node] + _first_values(NODE_FEATURES),
        edges=np.tile(rows["edges"][real_edge] + _first_values(EDGE_FEATURES), (2, 1)),
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
    step_hint = 3000
    target_share = 0.36  # as in the paper's runs of the official ogbg
    target_metric_name = "mean_average_precision"
    validation_target_value = 0.45215
    test_target_value = 0.50122
    loss_type = spec.LossType.SOFTMAX_CROSS_ENTROPY  # so officially, though each label has a sigmoid of its own
    eval_batch_size = 100
    max_eval_train_examples = 100

    def load_splits(self) -> dict[str, Split]:
        columns = cached("ogbg_molecules_1", generate)
        targets = np.nan_to_num(columns["targets"])
        first_active = np.where(targets.any(axis=1), targets.argmax(axis=1), ASSAYS)
        # Every assay has its share of each split: with one active molecule in it, its precision would be mere chance.
        order = np.lexsort((np.random.RandomState(0).rand(len(targets)), first_active))
        held_out = {"validation": order[::EVERY], "test": order[EVERY // 2 :: 2 * EVERY]}
        held_out["train"] = np.setdiff1d(order, np.concatenate(list(held_out.values())))
        return {split: {name: column[part] for name, column in columns.items()} for split, part in held_out.items()}

    def collate(self, rows: Split, rng: np.random.RandomState | None) -> dict[str, Any]:
        """`weights` become those of the labels, [batch, assays]: 0 where the label is missing or the graph padding."""
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
