"""mini_wmt: its vocabulary, its model and its search."""

import itertools

import numpy as np
import pytest
import sacrebleu
import torch

from miniperf import spec, workloads
from miniperf.workloads.wmt import data, sentences
from miniperf.workloads.wmt import pytorch as wmt
from miniperf.workloads.wmt.beam_search import beam_search, length_penalty
from miniperf.workloads.wmt.byte_pairs import END_ID, PAD_ID, BytePairs, decode


@pytest.fixture(scope="module")
def workload(tmp_path_factory):
    """A small one: 400 sentences, 150 merges."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIPERF_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(data, "SIZES", {"validation": 20, "test": 20, "train": 400})
        patch.setattr(data, "MERGES", 150)
        made = workloads.make("mini_wmt")
        _ = made.splits
        yield made


@pytest.fixture
def model(workload):
    """Not fresh, whose logits are nearly all alike, but with noise in every parameter."""
    model, _ = workload.init_model_fn([3, 0])
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="module")
def trained(workload):
    """One whose translations end, and differ from sentence to sentence."""
    return train(workload, 250)[0].eval()


def logits_of(workload, model, batch):
    return workload.model_fn(model, batch, None, spec.ForwardPassMode.EVAL, [0, 0], False)[0]


def train(workload, steps):
    torch.set_num_threads(1)
    model, _ = workload.init_model_fn([2, 0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    queue = workload._build_input_queue([0, 0], "train", "", workload.batch_size)
    losses = []
    for step in range(steps):
        batch = next(queue)
        logits, _ = workload.model_fn(model, batch, None, spec.ForwardPassMode.TRAIN, [step, 0], True, 0.1)
        result = workload.loss_fn(batch["targets"], logits, batch["weights"], label_smoothing=0.1)
        loss = result["summed"] / result["n_valid_examples"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


# Sentences.


def test_splits_are_disjoint(workload):
    sources = {}
    for name, split in workload.splits.items():
        for row in split["inputs"].tolist():
            assert sources.setdefault(tuple(row), name) == name
    assert len(sources) == 400 + 20 + 20


def test_translations_to_be_judged_by_take_the_commoner_words(workload):
    grammar = sentences.Grammar(np.random.RandomState(0), 0.0)
    drawn = dict(grammar.sentence() for _ in range(60))
    for split in ("validation", "test"):
        rows = zip(*(workload.splits[split][name].tolist() for name in ("inputs", "targets")), strict=True)
        for english, german in rows:
            assert drawn[decode(english, workload.pieces)] == decode(german, workload.pieces)


# Vocabulary.


def test_the_most_frequent_pair_is_merged_first():
    byte_pairs = BytePairs.learn(["aab aab ab", "ab b"], "▁ab", 2)  # a before b: 4 times; then a before ab: twice
    assert byte_pairs.pieces == ["<pad>", "<end>", "▁", "a", "b", "ab", "aab"]
    ids = byte_pairs.encode("aab ab")
    assert decode([*ids, END_ID, 3, 3], byte_pairs.pieces) == "aab ab"
    with pytest.raises(KeyError):
        byte_pairs.encode("c")
    early = BytePairs("▁abc", [("b", "c"), ("a", "b")])  # the more urgent merge is not the first in the word
    assert [early.pieces[i] for i in early.encode("abc")] == ["▁", "a", "bc"]


def test_tokenising_and_back_is_the_identity(workload):
    grammar = sentences.Grammar(np.random.RandomState(1), 0.3)
    texts = [text for _ in range(300) for text in grammar.sentence()]
    byte_pairs = BytePairs.learn(texts[:200], sorted(set("▁" + "".join(texts)) - {" "}), 100)
    for text in texts:
        ids = byte_pairs.encode(text)
        assert decode(ids, byte_pairs.pieces) == text
        assert not {PAD_ID, END_ID} & set(ids)
        assert len(ids) < len(text)


# Model and loss.


def test_padding_changes_neither_logits_nor_loss(workload, model):
    batch = next(workload._build_input_queue([0, 0], "validation", "", 12))
    padded = {
        "inputs": torch.nn.functional.pad(batch["inputs"], (0, 5, 0, 2)),  # five tokens, two examples
        "targets": torch.nn.functional.pad(batch["targets"], (0, 3, 0, 2)),
        "weights": torch.nn.functional.pad(batch["weights"], (0, 3, 0, 2)),
    }
    short, long = logits_of(workload, model, batch), logits_of(workload, model, padded)
    assert long.isfinite().all()
    length = batch["targets"].shape[1]
    torch.testing.assert_close(long[:12, :length], short, rtol=1e-4, atol=1e-5)
    left = workload.loss_fn(batch["targets"], short, batch["weights"], 0.1)
    right = workload.loss_fn(padded["targets"], long, padded["weights"], 0.1)
    torch.testing.assert_close(left["summed"], right["summed"])
    assert left["n_valid_examples"] == right["n_valid_examples"] == (batch["targets"] != PAD_ID).sum()


def test_a_batch_is_cut_to_its_longest_sentence(workload):
    batch = next(workload._build_input_queue([0, 0], "validation", "", 3))
    for name in ("inputs", "targets"):
        full = workload.splits["validation"][name][:3]
        assert batch[name].shape[1] == (full != PAD_ID).sum(1).max()
        assert (full[:, : batch[name].shape[1]] == batch[name].numpy()).all()


def test_label_smoothing_is_the_cross_entropy_with_smoothed_targets(workload):
    logits, labels = torch.randn(2, 3, 7), torch.randint(7, (2, 3))
    weights = torch.tensor([[1.0, 1, 0], [1, 0, 0]])
    smooth = 0.9 * torch.nn.functional.one_hot(labels, 7) + 0.1 / 7
    expected = -(smooth * logits.log_softmax(2)).sum(2)[weights > 0].sum()
    torch.testing.assert_close(workload.loss_fn(labels, logits, weights, 0.1)["summed"], expected)


def test_the_decoder_is_causal(workload, model):
    batch = next(workload._build_input_queue([0, 0], "validation", "", 8))
    before = logits_of(workload, model, batch)
    changed = {**batch, "targets": batch["targets"].clone()}
    changed["targets"][:, 6] = (changed["targets"][:, 6] + 1) % len(workload.pieces)
    after = logits_of(workload, model, changed)
    torch.testing.assert_close(after[:, :7], before[:, :7])
    assert not torch.allclose(after[:, 7], before[:, 7])


def test_loss_falls_and_runs_with_one_seed_are_identical(workload):
    model, losses = train(workload, 80)
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    again, same = train(workload, 80)
    assert losses == same
    for left, right in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(left, right)


# Search.


class Anew:
    """A `Decoder` that runs the whole model for each token: no keys and values are kept."""

    def __init__(self, model, inputs, beam_size):
        self.model, self.inputs = model, inputs
        self.tokens = torch.zeros(len(inputs), beam_size, 0, dtype=torch.long)

    def step(self, tokens):
        self.tokens = torch.cat([self.tokens, tokens.unsqueeze(2)], dim=2)
        beams, length = self.tokens.shape[1:]
        # The model shifts right by itself: it gets the tokens but the first one, and one more whatever it is.
        targets = torch.nn.functional.pad(self.tokens[:, :, 1:], (0, 1)).flatten(0, 1)
        logits = self.model(self.inputs.repeat_interleave(beams, dim=0), targets, 0.0)[:, length - 1]
        return logits.log_softmax(dim=1).view(len(self.inputs), beams, -1)

    def select(self, sentences, beams):
        self.inputs = self.inputs[sentences]
        self.tokens = self.tokens[sentences.unsqueeze(1), beams]


@torch.no_grad()
def test_kept_keys_and_values_are_those_of_the_whole_decoder(workload, trained):
    inputs = next(workload._build_input_queue([0, 0], "validation", "", 6))["inputs"]
    generator = torch.Generator().manual_seed(0)
    fast, slow = wmt.Hypotheses(trained, inputs, 3), Anew(trained, inputs, 3)
    tokens = torch.zeros(6, 3, dtype=torch.long)
    for kept in ([0, 1, 2, 3, 4, 5], [0, 2, 3, 5], [0, 2, 3], [1]):  # some leave, and beams change places
        torch.testing.assert_close(fast.step(tokens), slow.step(tokens), rtol=1e-4, atol=1e-4)
        chosen = torch.tensor(kept)
        beams = torch.randint(3, (len(chosen), 3), generator=generator)
        fast.select(chosen, beams)
        slow.select(chosen, beams)
        tokens = torch.randint(2, len(workload.pieces), (len(chosen), 3), generator=generator)
    found = [beam_search(decoder(trained, inputs, 4), 6, 30) for decoder in (wmt.Hypotheses, Anew)]
    assert torch.equal(*found)


@torch.no_grad()
def test_a_beam_of_one_is_greedy_decoding(workload, trained):
    inputs = next(workload._build_input_queue([0, 0], "validation", "", 20))["inputs"]
    found = beam_search(wmt.Hypotheses(trained, inputs, 1), 20, 50, beam_size=1)
    targets = torch.zeros(20, 50, dtype=torch.long)
    for place in range(50):
        targets[:, place] = trained(inputs, targets, 0.0)[:, place].argmax(dim=1)
    ended = (targets == END_ID).cumsum(1) - (targets == END_ID).long() > 0
    assert ended.any(dim=1).sum() > 5
    assert torch.equal(found, targets.masked_fill(ended, PAD_ID))


class Table:
    """A `Decoder` whose probabilities depend on the sentence and all earlier tokens, by a table."""

    def __init__(self, tables: list[dict], beam_size: int) -> None:
        self.rows = [[tables_of] for tables_of in tables]
        self.history = [[() for _ in range(beam_size)] for _ in tables]

    def step(self, tokens):
        self.history = [
            [(*past, token) for past, token in zip(pasts, line, strict=True)]
            for pasts, line in zip(self.history, tokens.tolist(), strict=True)
        ]
        return torch.stack(
            [torch.stack([row[0][past] for past in pasts]) for row, pasts in zip(self.rows, self.history, strict=True)]
        )

    def select(self, sentences, beams):
        chosen = sentences.tolist()
        self.rows = [self.rows[i] for i in chosen]
        self.history = [[self.history[i][b] for b in line] for i, line in zip(chosen, beams.tolist(), strict=True)]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 3.0])
def test_a_wide_beam_finds_the_best_of_all_sequences(alpha):
    vocabulary, length, beam = 4, 4, 108  # as many as there are continuations of the last step
    generator = torch.Generator().manual_seed(0)
    prefixes = [(0, *p) for n in range(length) for p in itertools.product(range(vocabulary), repeat=n)]
    tables = [
        {p: (2 * torch.randn(vocabulary, generator=generator)).log_softmax(0) for p in prefixes} for _ in range(60)
    ]
    expected = []
    for table in tables:
        best = (-float("inf"), ())
        for n in range(1, length + 1):
            for body in itertools.product([0, 2, 3], repeat=n - 1):
                tokens = (*body, END_ID)
                logs = [table[(0, *tokens[:i])][token].item() for i, token in enumerate(tokens)]
                best = max(best, (sum(logs) / length_penalty(n, alpha), tokens))
        expected.append([*best[1], *[0] * (length - len(best[1]))])
    found = beam_search(Table(tables, beam), len(tables), length, beam, alpha)
    assert found.tolist() == expected
    greedy = beam_search(Table(tables, 1), len(tables), length, 1, alpha)
    assert greedy.tolist() != expected  # else the search would have had nothing to find


def test_a_sentence_that_does_not_end_is_cut(workload, model):
    with torch.no_grad():
        inputs = next(workload._build_input_queue([0, 0], "validation", "", 4))["inputs"]
        found = beam_search(wmt.Hypotheses(model, inputs, 4), 4, 2)
    assert found.shape == (4, 2)


# Metrics.


def test_bleu_is_sacrebleus_and_100_for_a_perfect_translation(workload):
    texts = ["er hat am Montag zwei Bücher gekauft", "das alte Haus kostet zehn Euro und zwei Cent"]
    part = {"loss": 6.0, "correct": 3.0, "tokens": 4.0, "translations": texts, "references": texts}
    assert workload.metrics([part, part], 4) == {"loss": 1.5, "accuracy": 0.75, "bleu": pytest.approx(100.0)}
    wrong = {**part, "translations": ["er hat am Montag drei Bücher gekauft", texts[1]]}
    # One of 16 words is wrong, and with it 2 of 14 pairs, 3 of 12 triples and 3 of 10 quadruples.
    by_hand = 100 * (15 / 16 * 12 / 14 * 9 / 12 * 7 / 10) ** 0.25
    assert workload.metrics([wrong], 2)["bleu"] == pytest.approx(by_hand)
    short = {**part, "translations": ["er hat am Montag", texts[1]]}  # right, but 13 words for 16
    assert workload.metrics([short], 2)["bleu"] == pytest.approx(100 * np.exp(1 - 16 / 13))
    both = sacrebleu.corpus_bleu(wrong["translations"] + short["translations"], [texts + texts]).score
    assert workload.metrics([wrong, short], 4)["bleu"] == both


def test_evaluation_does_not_depend_on_the_batch_size(workload, trained):
    results = []
    for size in (20, 7):
        workload._eval_iters.clear()
        results.append(workload._eval_model_on_split("validation", 20, size, trained, None, [0, 0], ""))
    workload._eval_iters.clear()
    assert results[0] == pytest.approx(results[1], rel=1e-4)
    assert 0 < results[0]["accuracy"] < 1
