"""The horizon of an average, the share of training that it covers, and where it is best."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.measures import intervals, lead
from analysis.measures.lead import Leads
from analysis.measures.to_target import Measured
from analysis.reading.logs import Logs
from weight_averaging.averages.horizon import horizon, window_from_decay

# Levels at which averages are compared: what the baseline reaches by these shares of its training.
SHARES = (0.3, 0.5, 0.7, 0.8, 0.9)
# The parabola is fitted up to here: an average over more of training holds the beginning of it, and what that costs is
# no parabola in log horizon, and so large that it would decide where the optimum is.
FITTED_UP_TO = 0.25


def schedule_length(hparams: dict[str, Any], step_hint: float) -> float:
    """The updates over which a run anneals its learning rate: T."""
    return hparams.get("schedule_fraction", 1.0) * step_hint


def horizon_of(hparams: dict[str, Any], step_hint: float) -> float:
    """nu * L / T of a run; NaN for one that does not average.

    An EMA counts with the window of the same mean age, L = (1 + beta) / (1 - beta). A merge counts with its share at
    the end.
    """
    length = schedule_length(hparams, step_hint)
    if "averaging_horizon" in hparams:
        return hparams["averaging_horizon"] * step_hint / length
    if "averaging_share" in hparams:
        return hparams["averaging_share"]
    if "averaging_interval" not in hparams:
        return np.nan
    decay = hparams.get("averaging_decay")
    window = hparams["averaging_window"] if decay is None else window_from_decay(decay)
    return horizon(hparams["averaging_interval"], window, length)


def measure(measured: Measured, until: float) -> pd.DataFrame:
    """`Measured.trials` of the first share `until` of each run's schedule, with the columns horizon (of the run) and
    gain.

    The gain is how much better its best value is than that of the run it averages, in the metric's unit. The two have
    the same workload, seed and hyperparameters.
    """
    logs, targets = measured.logs, measured.targets
    hint = logs.runs["workload"].map(targets["step_hint"])
    lengths = pd.Series([schedule_length(h, t) for h, t in zip(logs.runs["hparams"], hint)], index=logs.runs.index)
    evaluations = logs.evaluations
    # Half an update is room for rounding.
    early = evaluations["global_step"] <= until * evaluations["run"].map(lengths) + 0.5
    part = Logs(logs.runs, evaluations[early], logs.columns, logs.skipped)
    trials = Measured(part, targets, measured.median_of).trials
    trials["horizon"] = [horizon_of(h, t) for h, t in zip(trials["hparams"], hint)]
    trials["source"] = [
        str(sorted((name, value) for name, value in h.items() if not name.startswith("averaging_")))
        for h in trials["hparams"]
    ]
    keys = ["workload", "study", "source"]
    raw = trials[trials["horizon"].isna()].drop_duplicates(keys).set_index(keys)["best"].rename("raw")
    sign = np.where(trials["workload"].map(targets["lower"]), -1.0, 1.0)
    trials["gain"] = sign * (trials["best"] - trials.join(raw, on=keys)["raw"])
    return trials


@dataclass(frozen=True)
class Optimum:
    """Where the parabola in log x is best, and its 95 % interval (NaN: none); an end of the range of x is no bound."""

    best: float
    low: float
    high: float
    ends: tuple[float, float]  # the range of x
    curve: np.ndarray  # the parabola's coefficients in log x, highest power first


def optimum(rows: pd.DataFrame, x: str, y: str, lower: bool, up_to: float = FITTED_UP_TO) -> Optimum | None:
    """Where the mean over seeds of the parabolas in log x is best, of runs with a horizon up to `up_to`.

    Least squares of y is for each seed by itself, since runs of one seed share their training.

    The interval is `intervals.vertex`, cut to the range of x, and the whole range for a parabola that opens the wrong
    way; NaN of a single seed. A parabola with no optimum inside the range counts with the better end. A value of x at
    which a seed missed or diverged is left out whole: the seeds that did not are the lucky ones.

    Returns:
        None where there are fewer than four values of x.
    """
    points = rows[[x, y, "study"]].dropna(subset=x)
    points = points[points.groupby("study")[y].transform("count") > 0]
    points = points[np.isfinite(points[y]).groupby(points[x]).transform("all")]
    points = points[(points[x] > 0) & (rows.loc[points.index, "horizon"] <= up_to)]
    if points[x].nunique() < 4:
        return None
    ends = (points[x].min(), points[x].max())
    seeds = [seed for _, seed in points.groupby("study") if seed[x].nunique() > 2]
    fits = np.array([np.polyfit(np.log(seed[x].to_numpy()), seed[y].to_numpy(), 2) for seed in seeds])
    curve = fits.mean(axis=0)
    low, high = (float(end) for end in intervals.vertex(fits[:, 0], fits[:, 1]))
    if (curve[0] > 0) != lower and np.isfinite(low):
        low, high = -np.inf, np.inf
    low, high = np.exp(np.clip([low, high], *np.log(ends)))
    return Optimum(_vertex(curve, ends, lower), float(low), float(high), ends, curve)


def _vertex(curve: np.ndarray, ends: tuple[float, float], lower: bool) -> float:
    a, b, _ = curve
    if (a > 0) == lower and a:
        return float(np.exp(np.clip(-b / (2 * a), *np.log(ends))))
    values = np.polyval(curve, np.log(ends))
    return float(ends[int(np.argmin(values) if lower else np.argmax(values))])


def leads(measured: Measured, baseline: str, shares: tuple[float, ...] = SHARES) -> Leads:
    """How soon averages of each horizon get where the baseline is at a share of its training, over all workloads.

    For each workload, seed and share, it takes the updates that the average needs over the baseline's (`lead.pairs`).
    An average that never gets there counts with the whole training. Horizons are in bins a factor of two wide, around
    0.01. The geometric mean is in a bin, then over workloads, with the interval for workloads like these
    (`intervals.student`).

    Returns:
        Rows: the bins' middles that all workloads have runs in.
    """
    found = lead.pairs(measured.logs.runs, measured.smooth, measured.targets, baseline, shares=shares)
    runs = measured.logs.runs.drop_duplicates(["workload", "submission"]).set_index(["workload", "submission"])[
        "hparams"
    ]
    hints = measured.targets["step_hint"]
    keys = zip(found["workload"], found["submission"])
    rows = found.assign(horizon=[horizon_of(runs[key], hints[key[0]]) for key in keys]).dropna(subset="horizon")
    rows["bin"] = 0.01 * 2.0 ** np.round(np.log2(rows["horizon"] / 0.01))
    logs = rows.groupby(["bin", "share", "workload"])["log"].mean().unstack("workload").dropna()
    low, high = intervals.student(logs.to_numpy())
    parts = {"ratio": logs.mean(axis=1), "low": low, "high": high}
    return Leads(**{name: np.exp(pd.Series(part, index=logs.index)).unstack("share") for name, part in parts.items()})
