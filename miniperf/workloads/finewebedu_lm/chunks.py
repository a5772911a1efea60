"""Batches of shuffled chunks of tokens: the same for any number of ranks, and at any position at once."""

from collections.abc import Iterator

import numpy as np

from miniperf.workloads.finewebedu_lm.shards import Tokens
from weight_averaging.errors import UsageError
from weight_averaging.words import counted


class ShuffledBatches:
    """Endless batches of chunks, shuffled anew in every epoch, of which each rank gets its part.

    A split is cut into chunks of `context + 1` tokens from its beginning on, regardless of documents; what is left at
    the end is not used. Batch b consists of the chunks from b * size to (b + 1) * size - 1 of the epochs one after the
    other. Rank r of n gets the r-th of n equal parts of it. So n ranks together see what one would.

    Args:
        tokens: of the split.
        context: tokens that the model sees.
        size: chunks of the batch of all ranks.
        seed: that decides, with the number of the epoch, the order.
        rank, ranks: this rank, and how many there are.
    Raises:
        UsageError: fewer tokens than one chunk has, or a batch that the ranks do not divide.
    """

    def __init__(self, tokens: Tokens, context: int, size: int, seed: int, rank: int = 0, ranks: int = 1) -> None:
        self._tokens, self._length = tokens, context + 1
        self._count = len(tokens) // self._length
        if self._count == 0:
            where = f"{tokens.folder}: the {tokens.split} split"
            raise UsageError(f"{where} has {counted(len(tokens), 'token')}, fewer than one chunk of {self._length}")
        if size % ranks:
            raise UsageError(f"the batch of {size} sequences does not divide by {ranks} ranks")
        self._size, self._seed, self._rank, self._ranks = size, seed, rank, ranks
        self._epoch, self._order = -1, np.empty(0, np.uint32)
        self.drawn = 0

    def skip(self, batches: int) -> None:
        """As if so many batches had been drawn."""
        self.drawn += batches

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """`inputs` and `targets`, each int64 [size / ranks, context]: a target is the token after its input."""
        share = self._size // self._ranks
        first = self.drawn * self._size + self._rank * share
        self.drawn += 1
        rows = np.stack([self._chunk(self._number(place)) for place in range(first, first + share)]).astype(np.int64)
        return {"inputs": rows[:, :-1], "targets": rows[:, 1:]}

    def _number(self, place: int) -> int:
        epoch, offset = divmod(place, self._count)
        if epoch != self._epoch:
            # The legacy generator: its permutations are the same in every version of numpy.
            order = np.random.RandomState([self._seed, epoch]).permutation(self._count)
            self._epoch, self._order = epoch, order.astype(np.uint32)
        return int(self._order[offset])

    def _chunk(self, number: int) -> np.ndarray:
        return self._tokens.read(number * self._length, self._length)


def in_order(
    tokens: Tokens, context: int, size: int, rank: int = 0, ranks: int = 1, count: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """One pass over the first `count` chunks of a split, or all, to evaluate on: each rank has every `ranks`-th chunk.

    Yields:
        `inputs` and `targets`, each int64 [up to size, context].
    """
    length = context + 1
    mine = range(rank, len(tokens) // length if count is None else count, ranks)
    for start in range(0, len(mine), size):
        rows = np.stack([tokens.read(n * length, length) for n in mine[start : start + size]]).astype(np.int64)
        yield {"inputs": rows[:, :-1], "targets": rows[:, 1:]}
