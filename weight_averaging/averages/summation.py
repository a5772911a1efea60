"""The order in which snapshots are summed: pairwise, the same online and offline and in every framework. Pure Python.

Sums of LEAF snapshots in a row are added up in a balanced tree. Its rounding error grows with log K instead of K
(Higham 1993, "The accuracy of floating point summation"). In float32 the mean of K vectors x_i is off by at most

    (LEAF + log2(K / LEAF)) 2^-24 mean |x_i|,

to first order. Snapshots go in oldest first, one at a time, so that the same order serves a window in memory and files
that are read once.
"""

from collections.abc import Iterable
from typing import Any

LEAF = 8


def accumulators(count: int) -> int:
    """How many partial sums of `count` snapshots are held at the same time, at most."""
    leaves = -(-count // LEAF)
    return max(1, leaves.bit_length())


def merges(leaf: int) -> int:
    """How many partial sums are added to the one before them once leaf number `leaf` (0, 1, ...) is complete.

    They merge as a binary counter carries.
    """
    return leaf.bit_count() + 1 - (leaf + 1).bit_count()


def pairwise_sum(values: Iterable[Any]) -> Any:
    """The sum of at least one value, oldest first, of a type with `+`; each is asked for once, when it is needed.

    Neutral values (-0.0) at the end change no bit of it.

    >>> pairwise_sum(range(20))
    190
    """
    sums: list[Any] = []
    for index, value in enumerate(values):
        leaf, member = divmod(index, LEAF)
        if member == 0:
            sums.append(value)
        else:
            sums[-1] = sums[-1] + value
        if member == LEAF - 1:
            for _ in range(merges(leaf)):
                last = sums.pop()
                sums[-1] = sums[-1] + last
    while len(sums) > 1:
        last = sums.pop()
        sums[-1] = sums[-1] + last
    return sums[0]
