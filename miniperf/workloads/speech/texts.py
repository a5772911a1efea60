"""What is spoken: two or three words in a row, as they stand in the addresses of `mini_finewebedu_lm`.

The words are the most frequent ones. So a small model meets each often enough to learn how it is spelled, which cannot
be heard in English. A text crosses no punctuation mark and no rarer word. Each split has its own addresses.
"""

import re
from collections import Counter
from collections.abc import Iterator
from string import ascii_lowercase

import numpy as np

from miniperf.workloads.finewebedu_lm.data import speeches

VOCABULARY = 60  # words
FEWEST, MOST = 2, 3  # words of a text
LONGEST = 16  # letters and spaces of a text


def frequent_words(addresses: list[str]) -> set[str]:
    """The VOCABULARY most frequent words, and for each letter in none of them the most frequent word that has it."""
    counts = Counter(word for address in addresses for word in re.findall("[a-z]+", address.lower()))
    words = [word for word, _ in counts.most_common() if len(word) > 1 or word in {"a", "i"}]
    chosen = words[:VOCABULARY]
    for letter in ascii_lowercase:
        if not any(letter in word for word in chosen):
            chosen += [word for word in words if letter in word][:1]
    return set(chosen)


def runs(address: str, vocabulary: set[str]) -> Iterator[list[str]]:
    """The longest sequences of words of the vocabulary, in lower case, between which nothing but spaces stands."""
    run: list[str] = []
    for token in address.lower().split():
        word = token.rstrip(".,;:!?")
        if word in vocabulary:
            run.append(word)
        if word not in vocabulary or word != token:
            yield run
            run = []
    yield run


def draw(counts: dict[str, int], rng: np.random.RandomState) -> dict[str, list[str]]:
    """So many texts for each split, no two of them the same, from a share of the addresses for each.

    Raises:
        ValueError: the addresses have fewer texts than that.
    """
    addresses = speeches()
    vocabulary = frequent_words(addresses)
    shares = np.cumsum(list(counts.values()))[:-1] / sum(counts.values())
    parts = np.split(rng.permutation(len(addresses)), np.round(shares * len(addresses)).astype(int))
    used: set[str] = set()
    drawn = {}
    for (split, count), part in zip(counts.items(), parts, strict=True):
        texts: dict[str, None] = {}  # in order, each once
        for run in (run for i in part for run in runs(addresses[i], vocabulary)):
            for start in range(len(run) - FEWEST + 1):
                text = " ".join(run[start : start + rng.randint(FEWEST, MOST + 1)])
                if len(text) <= LONGEST and text not in used:
                    texts[text] = None
        if len(texts) < count:
            raise ValueError(f"the addresses have {len(texts)} texts for {split}, fewer than {count}")
        ordered = list(texts)
        drawn[split] = [ordered[i] for i in rng.permutation(len(ordered))[:count]]
        used.update(drawn[split])
    return drawn
