"""The AlgoPerf score: performance profiles and the area under them.

Source: Dahl et al., "Benchmarking Neural Network Training Algorithms" (2023), section 4.5, and the rules of v0.5.
"""

import numpy as np
import pandas as pd

from analysis.targets import resolve as targets_

MAX_RATIO = 4.0
POINTS = 100


def scored_times(times: pd.DataFrame, targets: pd.DataFrame) -> pd.DataFrame:
    """Times to target that count.

    Args:
        times: rows submissions, columns workloads and held-out variants; inf for a miss, NaN without a run.
        targets: of `targets.resolve`.

    Returns:
        Columns: the scored base workloads. A time more than four times the best submission's is inf; so is one whose
        held-out variant was missed, and a variant counts only if its base workload was reached.
    """
    variant_of = targets["variant_of"].dropna()
    times = times.reindex(columns=targets.index.union(pd.Index(variant_of, dtype=object)))
    for variant, base in variant_of.items():
        times[variant] = times[variant].where(np.isfinite(times[base]), np.inf)
    times = times.where(~(times > MAX_RATIO * times.min()), np.inf)
    for variant, base in variant_of.items():
        times[base] = times[base].where(np.isfinite(times[variant]), np.inf)
    return times[targets_.base(targets).index]


def performance_profile(times: pd.DataFrame, number_of_workloads: int) -> pd.DataFrame:
    """rho(tau): the share of workloads on which a submission needs at most tau times the best one's time.

    Args:
        times: of `scored_times`.
        number_of_workloads: what the share is of: the benchmark's number, though no run may be there of some.

    Returns:
        Rows submissions, columns 100 values of tau from 1 to 4.
    """
    ratios = times / times.replace(np.inf, np.nan).min()
    taus = np.linspace(1.0, MAX_RATIO, POINTS)
    shares = [(ratios <= tau).sum(axis=1) / number_of_workloads for tau in taus]
    return pd.concat(shares, axis=1, keys=taus)


def scores(profile: pd.DataFrame) -> pd.Series:
    """The integral of rho over tau in [1, 4] (trapezoids) divided by 3: 1 for a submission fastest everywhere."""
    area = np.trapezoid(profile.to_numpy(), x=profile.columns.to_numpy(dtype=float), axis=1)
    return pd.Series(area / (MAX_RATIO - 1.0), index=profile.index, name="score").sort_values(ascending=False)


def score(times: pd.DataFrame, targets: pd.DataFrame) -> tuple[pd.Series, pd.DataFrame]:
    """Scores and performance profiles from `to_target.submissions` (the benchmark scores seconds) and
    `targets.resolve`."""
    profile = performance_profile(scored_times(times, targets), targets.attrs["workloads"])
    return scores(profile), profile
