"""The mean of snapshots in few passes over memory, in the order of `weight_averaging.averages.summation`.

Nothing is carried over from one mean to the next, so nothing drifts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from weight_averaging.averages.summation import LEAF, accumulators, merges

__all__ = ["LEAF", "accumulators", "add", "mean_of", "pairwise_mean", "weighted_sum"]


def add(sums: Sequence[Tensor], index: int, vector: Tensor) -> None:
    """Take in vector number `index` (0, 1, ...) of those to be summed.

    Args:
        sums: the partial sums so far, and room for `accumulators` of all.
        index: every vector comes once, in this order.
    """
    leaf, member = divmod(index, LEAF)
    last = leaf.bit_count()
    if member == 0:
        sums[last].copy_(vector)
    else:
        sums[last].add_(vector)
    if member == LEAF - 1:
        _merge(sums, last, until=last - merges(leaf))


def mean_of(sums: Sequence[Tensor], count: int) -> Tensor:
    """The mean of the `count` vectors taken in, in the memory of `sums[0]`."""
    return sum_of(sums, count).div_(count)


def sum_of(sums: Sequence[Tensor], count: int) -> Tensor:
    """The sum of the `count` vectors taken in, in the memory of `sums[0]`."""
    leaves = -(-count // LEAF)
    last = leaves.bit_count() - 1 if count % LEAF == 0 else (leaves - 1).bit_count()
    _merge(sums, last, until=0)
    return sums[0]


def pairwise_mean(vectors: Sequence[Tensor], sums: Sequence[Tensor]) -> Tensor:
    """The mean of K flat vectors, oldest first, each read once, in the memory of `sums[0]`."""
    count = len(vectors)
    for index in range(count):
        if index % LEAF == 0 and index + 1 < count:  # with the next one, for a pass over the partial sum less
            torch.add(vectors[index], vectors[index + 1], out=sums[(index // LEAF).bit_count()])
        elif index % LEAF != 1:
            add(sums, index, vectors[index])
    return mean_of(sums, count)


def weighted_sum(vectors: Sequence[Tensor], sums: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """The sum of K flat vectors, oldest first, each times its coefficient, in the memory of `sums[0]`.

    Args:
        sums: as of `add`, and one more, in which the products are made.
    """
    for index, (vector, coefficient) in enumerate(zip(vectors, coefficients, strict=True)):
        add(sums, index, torch.mul(vector, coefficient, out=sums[-1]))
    return sum_of(sums, len(vectors))


def _merge(sums: Sequence[Tensor], last: int, until: int) -> None:
    for number in range(last, until, -1):
        sums[number - 1].add_(sums[number])
