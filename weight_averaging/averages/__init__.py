"""What an average is: which snapshots it is made of, with which weights. Pure Python.

A description serves everywhere: over a live model in PyTorch or JAX, over saved files, in a grid, on the command line,
in a submission. `docs/own_average.md` writes a new one.
"""

from weight_averaging.averages.average import Average, SnapshotError
from weight_averaging.averages.follows_rate import FollowsRate
from weight_averaging.averages.kinds import EMA, LAWA, SHAPES, Growing, Merge, Power, Ramp, Tail, Weighted, exponential

__all__ = [
    "EMA",
    "LAWA",
    "SHAPES",
    "Average",
    "FollowsRate",
    "Growing",
    "Merge",
    "Power",
    "Ramp",
    "SnapshotError",
    "Tail",
    "Weighted",
    "exponential",
]
