"""Where a learning curve crosses a level: interpolated between evaluations, and no matter of one lucky evaluation.

The official rule takes the first evaluation at the target. It is known to a period of evaluations, and on a noisy curve
it is the first lucky one: the more evaluations, the sooner. Here a curve is first smoothed by a running median.
"""

import numpy as np

# One number for baselines and averages alike, fixed before the runs that it is for (docs/results/rules.md).
MEDIAN_OF = 5


def smooth(values: np.ndarray, median_of: int = MEDIAN_OF) -> np.ndarray:
    """The running median of an odd number of evaluations, in their middle; towards the ends of as many as there are on
    both sides. A curve that only rises or only falls stays as it is.

    Args:
        values: one per evaluation, all finite.
    """
    result = values.copy()
    for width in range(3, min(median_of, len(values)) + 1, 2):
        inner = np.median(np.lib.stride_tricks.sliding_window_view(values, width), axis=1)
        result[width // 2 : len(values) - width // 2] = inner
    return result


def first(points: np.ndarray, values: np.ndarray, level: float, lower: bool) -> float:
    """The point at which the values first get to a level, interpolated from the evaluation before; inf if never."""
    hits = np.flatnonzero(values <= level if lower else values >= level)
    if not len(hits):
        return np.inf
    after = int(hits[0])
    if after == 0:
        return float(points[0])
    share = (level - values[after - 1]) / (values[after] - values[after - 1])
    return float(points[after - 1] + share * (points[after] - points[after - 1]))
