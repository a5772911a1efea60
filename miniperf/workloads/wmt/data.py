"""mini_wmt: English to German with an encoder-decoder Transformer, scored by BLEU after a beam search.

Data: pairs drawn from a grammar of both languages (`sentences.py`), their numbers and dates worded by the package
`num2words`. As in news translation the word order differs, German writes compounds, and words have a long tail. A
translator's choice between synonyms cannot be foreseen, and the sentences held out are new. The sentences held out take
the commoner word throughout, lest coin flips decide some points of BLEU on a hundred sentences. The message catalogues
that ship with packages are translations by people, but too few and too diverse to learn from: Django 5.2 has some 800
messages with 3,400 German words, of which 29 % occur once only.
"""

from typing import Any

import numpy as np
import sacrebleu

from miniperf import spec
from miniperf.cache import cached
from miniperf.workloads.base import MiniWorkload, Split
from miniperf.workloads.wmt.byte_pairs import END_ID, PAD_ID, WORD_START, BytePairs
from miniperf.workloads.wmt.sentences import Grammar

# Each of the held out is translated at every evaluation; BLEU of half as many for validation jumps by half a point.
SIZES = {"validation": 200, "test": 50, "train": 20_000}
MERGES = 1000
SYNONYM_SHARE = 0.2  # of the translations to learn from; those to be judged by take the commoner word


def generate() -> dict[str, np.ndarray]:
    """The splits' `inputs` and `targets`, [examples, length] padded with 0, and the `pieces` of the vocabulary."""
    rng = np.random.RandomState(0)
    pairs: dict[str, str] = {}  # by the English side, which is in one split only
    for split, size in SIZES.items():
        grammar, wanted = Grammar(rng, SYNONYM_SHARE if split == "train" else 0.0), len(pairs) + size
        while len(pairs) < wanted:
            english, german = grammar.sentence()
            pairs.setdefault(english, german)
    texts = list(pairs.items())
    alphabet = sorted({WORD_START}.union(*(set("".join(pair).replace(" ", "")) for pair in texts)))
    train = texts[-SIZES["train"] :]
    byte_pairs = BytePairs.learn((text for pair in train for text in pair), alphabet, MERGES)
    arrays = {"pieces": np.array(byte_pairs.pieces)}
    for side, name in enumerate(("inputs", "targets")):
        rows = [[*byte_pairs.encode(pair[side]), END_ID] for pair in texts]
        table = np.full((len(rows), max(map(len, rows))), PAD_ID, dtype=np.int16)
        for line, row in zip(table, rows, strict=True):
            line[: len(row)] = row
        start = 0
        for split, count in SIZES.items():
            arrays[f"{split}_{name}"] = table[start : start + count]
            start += count
    return arrays


class WmtData(MiniWorkload):
    batch_size = 8
    step_hint = 1600
    target_share = 0.89
    target_metric_name = "bleu"
    validation_target_value = 90.75856
    test_target_value = 91.12533
    eval_batch_size = 200
    max_eval_train_examples = 20  # decoding is what an evaluation costs
    loss_type = spec.LossType.SOFTMAX_CROSS_ENTROPY

    def load_splits(self) -> dict[str, Split]:
        arrays = cached("wmt_6", generate)
        self.pieces: list[str] = arrays["pieces"].tolist()
        names = ("train", "validation", "test")
        return {s: {n: arrays[f"{s}_{n}"] for n in ("inputs", "targets")} for s in names}

    def collate(self, rows: Split, rng: np.random.RandomState | None) -> dict[str, Any]:
        """Cut to the longest sentences; the `weights` become [batch, target length], 0 for padding."""
        names = ("inputs", "targets")
        cut = {name: rows[name][:, (rows[name] != PAD_ID).any(axis=0)].astype(np.int64, order="C") for name in names}
        return {**cut, "weights": rows["weights"][:, None] * (cut["targets"] != PAD_ID)}

    def metrics(self, parts: list[dict[str, Any]], num_examples: int) -> dict[str, float]:
        tokens = sum(part["tokens"] for part in parts)
        translations, references = (
            [text for part in parts for text in part[name]] for name in ("translations", "references")
        )
        return {
            "loss": sum(part["loss"] for part in parts) / tokens,
            "accuracy": sum(part["correct"] for part in parts) / tokens,
            "bleu": sacrebleu.corpus_bleu(translations, [references]).score,
        }
