"""Byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909) of words, with a mark at the beginning of each word."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

PAD_ID, END_ID = 0, 1
SPECIAL_PIECES = ["<pad>", "<end>"]
WORD_START = "▁"

PairOfPieces = tuple[str, str]


class BytePairs:
    """A vocabulary of pieces: the special ones, the alphabet, and one piece for each merge.

    Args:
        alphabet: single characters, the word mark among them. A text with any other character is a KeyError.
        merges: pairs of pieces to be joined, the most urgent first.
    """

    def __init__(self, alphabet: Iterable[str], merges: list[PairOfPieces]) -> None:
        joined = [left + right for left, right in merges]
        self.pieces = list(dict.fromkeys([*SPECIAL_PIECES, *alphabet, *joined]))  # two merges may make the same piece
        self._ids = {piece: i for i, piece in enumerate(self.pieces)}
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._words: dict[str, list[int]] = {}

    @classmethod
    def learn(cls, texts: Iterable[str], alphabet: Iterable[str], num_merges: int) -> "BytePairs":
        """Merges the most frequent pair of neighbours in `texts`, again and again; of equals the first in order."""
        counts = Counter(word for text in texts for word in text.split())
        words, times = [[WORD_START, *word] for word in sorted(counts)], [counts[word] for word in sorted(counts)]
        pairs: Counter[PairOfPieces] = Counter()
        where: defaultdict[PairOfPieces, set[int]] = defaultdict(set)  # the words that a pair is in, or once was
        for i, pieces in enumerate(words):
            for pair in pairwise(pieces):
                pairs[pair] += times[i]
                where[pair].add(i)
        merges: list[PairOfPieces] = []
        for _ in range(num_merges):
            most = max(pairs.values(), default=0)
            if not most:
                break
            best = min(pair for pair, count in pairs.items() if count == most)
            merges.append(best)
            for i in where.pop(best):
                for pair in pairwise(words[i]):
                    pairs[pair] -= times[i]
                words[i] = _merge(words[i], best)
                for pair in pairwise(words[i]):
                    pairs[pair] += times[i]
                    where[pair].add(i)
        return cls(alphabet, merges)

    def encode(self, text: str) -> list[int]:
        """The ids of the pieces of a text whose words are separated by single spaces; no end is added."""
        return [i for word in text.split() for i in self._encode_word(word)]

    def _encode_word(self, word: str) -> list[int]:
        if word not in self._words:
            pieces = [WORD_START, *word]
            while known := [pair for pair in pairwise(pieces) if pair in self._ranks]:
                pieces = _merge(pieces, min(known, key=self._ranks.__getitem__))
            self._words[word] = [self._ids[piece] for piece in pieces]
        return self._words[word]


def decode(ids: Iterable[int], pieces: list[str]) -> str:
    """The text up to the first end. Padding, which a model may write before it, is left out."""
    kept = []
    for i in ids:
        if i == END_ID:
            break
        if i != PAD_ID:
            kept.append(pieces[i])
    return "".join(kept).replace(WORD_START, " ").strip()


def _merge(pieces: list[str], pair: PairOfPieces) -> list[str]:
    merged: list[str] = []
    position = 0
    while position < len(pieces):
        if tuple(pieces[position : position + 2]) == pair:
            merged.append(pieces[position] + pieces[position + 1])
            position += 2
        else:
            merged.append(pieces[position])
            position += 1
    return merged
