"""mini_ogbg: splits, labels, masks, the network's symmetries, evaluation. Molecules and metric: test_molecules.py."""

import importlib.util
from itertools import islice

import numpy as np
import pandas as pd
import pytest
import torch
from rdkit import Chem

from miniperf import spec
from miniperf.workloads.ogbg import data as ogbg
from miniperf.workloads.ogbg.data import measurements  # as it is while another stands in its place
from miniperf.workloads.ogbg.pytorch import MiniOgbgWorkload

EVAL = spec.ForwardPassMode.EVAL


def some_measurements(every):
    """Those of one molecule of so many."""
    table = measurements()
    return table[table["smiles"].isin(table["smiles"].unique()[::every])]


@pytest.fixture(scope="module")
def table():
    return some_measurements(60)


@pytest.fixture(scope="module")
def workload(tmp_path_factory, table):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIPERF_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(ogbg, "measurements", lambda: table)
        patch.setattr(ogbg, "EVERY", 6)
        made = MiniOgbgWorkload()
        made.init_model_fn([0, 0])
        yield made


def logits_of(workload, model, batch):
    return workload.model_fn(model, batch, None, EVAL, [0, 0], False)[0]


def train(workload, steps, key):
    model, _ = workload.init_model_fn(key)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    queue = workload._build_input_queue(key, "train", "", 16)
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


# The data.


def smiles_of(nodes, ends, edges) -> str:
    """Back from features to a molecule and its canonical SMILES."""
    molecule = Chem.RWMol()
    for element, _, hydrogens, charge, ring in nodes.tolist():
        atom = Chem.Atom(ogbg.ELEMENTS[element])
        atom.SetFormalCharge(charge - 1)
        atom.SetNoImplicit(True)
        atom.SetNumExplicitHs(hydrogens)
        atom.SetIsAromatic(ring == 2)
        molecule.AddAtom(atom)
    for (a, b), (bond, _) in zip(ends.tolist(), edges.tolist(), strict=True):
        molecule.AddBond(a, b, ogbg.BONDS[bond])
    Chem.SanitizeMol(molecule)
    return Chem.MolToSmiles(Chem.RemoveHs(molecule))


def row_smiles(split, i) -> str:
    nodes, edges = int(split["num_nodes"][i]), int(split["num_edges"][i])
    return smiles_of(split["nodes"][i, :nodes], split["ends"][i, :edges], split["edges"][i, :edges])


def test_splits_hold_each_molecule_once_and_nothing_else(workload, table):
    found = [row_smiles(split, i) for split in workload.splits.values() for i in range(len(split["targets"]))
             if not (split["nodes"][i, :, 0] == len(ogbg.ELEMENTS)).any()]  # fmt: skip
    assert len(found) == len(set(found))
    parsed = [Chem.MolFromSmiles(smiles) for smiles in table["smiles"]]
    expected = {
        Chem.MolToSmiles(molecule, isomericSmiles=False)
        for molecule in parsed
        if molecule.GetNumAtoms() <= ogbg.MAX_ATOMS
        and all(atom.GetSymbol() in ogbg.ELEMENTS for atom in molecule.GetAtoms())
    }
    assert len(expected) > 250
    assert set(found) == expected


def test_every_assay_has_its_share_of_validation(workload):
    """By the first assay in which a molecule is active."""
    counts = {
        name: np.bincount([np.append(row == 1, True).argmax() for row in split["targets"]], minlength=ogbg.ASSAYS + 1)
        for name, split in workload.splits.items()
    }
    everything = np.sum(list(counts.values()), axis=0)
    assert (abs(counts["validation"] - everything / ogbg.EVERY) <= 1).all()
    assert (abs(counts["test"] - everything / ogbg.EVERY / 2) <= 1).all()
    assert (everything[: ogbg.ASSAYS] > 0).sum() > 25


def test_labels_are_those_measured_and_some_presumed(workload, table):
    split = workload.splits["train"]
    flat = {s: Chem.MolToSmiles(Chem.MolFromSmiles(s), isomericSmiles=False) for s in table["smiles"].unique()}
    means = table.assign(molecule=table["smiles"].map(flat)).groupby(["molecule", "assay"])["y"].mean()
    unmeasured = []
    for i in range(60):
        measured = means.get(row_smiles(split, i), pd.Series(dtype=float))
        for assay, label in enumerate(split["targets"][i].tolist()):
            if assay in measured.index:
                assert label == (measured[assay] >= -3)
            else:
                unmeasured.append(label)
    assert set(np.nan_to_num(unmeasured, nan=2)) == {0, 2}
    assert np.isnan(unmeasured).mean() == pytest.approx(1 - ogbg.PRESUMED_SHARE, abs=0.05)


def test_all_30_assays_are_there_with_both_answers():
    table = measurements()
    assert len(table) == 48_714
    positives = (table["y"] >= ogbg.ACTIVE).groupby(table["assay"]).mean()
    assert len(positives) == ogbg.ASSAYS
    assert 0.5 < positives.min() < positives.max() < 0.98


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    line = r"^mini_ogbg needs the package MoleculeACE: pip install --no-deps MoleculeACE==3\.0\.0$"
    with pytest.raises(ModuleNotFoundError, match=line):
        measurements()


def test_data_is_generated_alike_every_time(monkeypatch):
    few = some_measurements(1000)
    monkeypatch.setattr(ogbg, "measurements", lambda: few)
    one, two = ogbg.generate(), ogbg.generate()
    for name, column in one.items():
        assert len(column) > 10
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
    left = workload.num_validation_examples - 40
    assert 0 < left < 40
    assert last["weights"][left:].sum() == 0
    assert last["inputs"].graph_of_node.max() == left - 1
    rows = {name: column[40:] for name, column in workload.splits["validation"].items()}
    real = batch_of(workload, rows)
    padded_logits, logits = logits_of(workload, model, last), logits_of(workload, model, real)
    assert padded_logits.isfinite().all()
    torch.testing.assert_close(padded_logits[:left], logits)
    parts = [workload.evaluate_batch(model, batch, out) for batch, out in ((last, padded_logits), (real, logits))]
    one, other = (workload.metrics([part], left) for part in parts)
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
    logits = torch.zeros(16, ogbg.ASSAYS, requires_grad=True)
    workload.loss_fn(batch["targets"], logits, batch["weights"])["summed"].backward()
    assert logits.grad is not None
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
        rows["nodes"][i, place] = rows["nodes"][i, :nodes].copy()
        rows["ends"][i, :edges] = place[rows["ends"][i, :edges]][order][:, ::-1]
        rows["edges"][i, :edges] = rows["edges"][i, :edges][order]
    after = logits_of(workload, model, batch_of(workload, rows))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    rows["edges"][..., 0] = (rows["edges"][..., 0] + 1) % len(ogbg.BONDS)  # while another graph is another graph
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
    losses = train(workload, 30, [2, 0])
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
    assert train(workload, 10, [2, 0]) == losses[:10]
    assert train(workload, 10, [2, 1]) != losses[:10]


# The metric.


def test_perfect_answers_are_perfect(workload):
    parts = []
    for batch in islice(workload._build_input_queue([0, 0], "validation", "", 40), 2):
        parts.append(workload.evaluate_batch(None, batch, 50 * (2 * batch["targets"] - 1)))
    result = workload.metrics(parts, workload.num_validation_examples)
    assert result["mean_average_precision"] == 1
    assert result["loss"] == pytest.approx(0, abs=1e-6)


def test_evaluation_does_not_depend_on_the_batch_size(workload):
    model, _ = workload.init_model_fn([1, 0])
    results, count = [], workload.num_validation_examples
    for size in (7, count, 64):
        workload._eval_iters.clear()
        results.append(workload._eval_model_on_split("validation", count, size, model, None, [0, 0], ""))
    workload._eval_iters.clear()
    assert results[0] == pytest.approx(results[1], rel=1e-5)
    assert results[2] == pytest.approx(results[1], rel=1e-5)
