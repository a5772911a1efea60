"""The horizon of an average, the share of training that it covers, and where it is best."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.measures import lead
from analysis.measures.to_target import Measured
from analysis.reading.logs import Logs

RESAMPLES = 2000
# Levels at which averages are compared: what the baseline reaches by these shares of its training.
SHARES = (0.3, 0.5, 0.7, 0.8, 0.9)
# The parabola is fitted up to here: an average over more of training holds the beginning of it, and what that costs is
# no parabola in log horizon, and so large that it would decide where the optimum is.
FITTED_UP_TO = 0.25


def schedule_length(hparams: dict[str, Any], step_hint: float) -> float:
    """The updates over which a run anneals its learning rate: T."""
    return hparams.get("schedule_fraction", 1.0) * step_hint


def horizon_of(hparams: dict[str, Any], step_hint: float) -> float:
    """nu * L / T of a run; an EMA counts with the window of the same mean age, L = (1 + beta) / (1 - beta), a merge
    with its share at the end. NaN for one that does not average."""
    length = schedule_length(hparams, step_hint)
    if "averaging_horizon" in hparams:
        return hparams["averaging_horizon"] * step_hint / length
    if "averaging_share" in hparams:
        return hparams["averaging_share"]
    if "averaging_interval" not in hparams:
        return np.nan
    decay = hparams.get("averaging_decay")
    window = hparams["averaging_window"] if decay is None else (1 + decay) / (1 - decay)
    return hparams["averaging_interval"] * window / length


def measure(logs: Logs, targets: pd.DataFrame, until: float) -> pd.DataFrame:
    """`Measured.trials` of the first share `until` of each run's schedule, with the columns horizon (of the run) and
    gain: by how much its best value is better than that of the run it averages (same workload, seed and
    hyperparameters), in the metric's unit."""
    hint = logs.runs["workload"].map(targets["step_hint"])
    lengths = pd.Series([schedule_length(h, t) for h, t in zip(logs.runs["hparams"], hint)], index=logs.runs.index)
    evaluations = logs.evaluations
    # Half an update is room for rounding.
    early = evaluations["global_step"] <= until * evaluations["run"].map(lengths) + 0.5
    trials = Measured(Logs(logs.runs, evaluations[early], logs.columns, logs.skipped), targets).trials
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


def optimum(rows: pd.DataFrame, x: str, y: str, lower: bool) -> Optimum | None:
    """Least squares of y on log x and its square, with a level of its own for each seed: runs of one seed share their
    training. Of runs with a horizon up to `FITTED_UP_TO`.

    The interval is the 2.5 to 97.5 % range over bootstrap samples of seeds and, within them, of runs, NaN of a single
    seed; a parabola with no optimum inside the range of x counts with the better end. A value of x at which a seed
    missed is left out whole: the seeds that did not are the lucky ones.

    Returns:
        None where there are fewer than four values of x.
    """
    points = rows[[x, y, "study"]].dropna()
    points = points[np.isfinite(points.groupby(x)[y].transform("max"))]
    points = points[(points[x] > 0) & (rows.loc[points.index, "horizon"] <= FITTED_UP_TO)]
    if points[x].nunique() < 4:
        return None
    ends = (points[x].min(), points[x].max())
    groups = [(np.log(mine[x].to_numpy()), mine[y].to_numpy()) for _, mine in points.groupby("study")]
    curve = _fit(groups)
    if len(groups) == 1:
        return Optimum(_vertex(curve, ends, lower), np.nan, np.nan, ends, curve)
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLES):
        sample = []
        for group in random.integers(len(groups), size=len(groups)):
            chosen = random.integers(len(groups[group][0]), size=len(groups[group][0]))
            sample.append((groups[group][0][chosen], groups[group][1][chosen]))
        if len(np.unique(np.concatenate([logs for logs, _ in sample]))) >= 3:
            drawn.append(_vertex(_fit(sample), ends, lower))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Optimum(_vertex(curve, ends, lower), float(low), float(high), ends, curve)


def _fit(groups: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """a, b and the mean level c of y = a log(x)^2 + b log(x) + c_group."""
    logs = np.concatenate([x for x, _ in groups])
    level = np.repeat(np.eye(len(groups)), [len(x) for x, _ in groups], axis=0)
    design = np.column_stack([logs**2, logs, level])
    solution = np.linalg.lstsq(design, np.concatenate([y for _, y in groups]), rcond=None)[0]
    return np.array([solution[0], solution[1], solution[2:].mean()])


def _vertex(curve: np.ndarray, ends: tuple[float, float], lower: bool) -> float:
    a, b, _ = curve
    if (a > 0) == lower and a:
        return float(np.exp(np.clip(-b / (2 * a), *np.log(ends))))
    values = np.polyval(curve, np.log(ends))
    return float(ends[int(np.argmin(values) if lower else np.argmax(values))])


def leads(measured: Measured, baseline: str, shares: tuple[float, ...] = SHARES) -> pd.DataFrame:
    """How soon averages of each horizon get where the baseline is at a share of its training, over all workloads.

    Of each workload and share the updates that the average needs over the baseline's (`lead.table`; one that never gets
    there counts with the whole training); horizons in bins a factor of two wide, around .01; geometric mean in a bin,
    then over workloads.

    Returns:
        Rows: the bins' middles that all workloads have runs in; columns: the shares.
    """
    table = lead.table(measured.logs.runs, measured.curves, measured.targets, baseline, shares=shares)
    runs = measured.logs.runs.drop_duplicates(["workload", "submission"]).set_index(["workload", "submission"])[
        "hparams"
    ]
    hints = measured.targets["step_hint"]
    rows = table.reset_index(names=["workload", "submission"])
    pairs = zip(rows["workload"], rows["submission"])
    rows["horizon"] = [horizon_of(runs[workload, name], hints[workload]) for workload, name in pairs]
    rows = rows.dropna(subset="horizon")
    for share in shares:
        rows[share] = rows[share].fillna(1 / share)
    rows["bin"] = 0.01 * 2.0 ** np.round(np.log2(rows["horizon"] / 0.01))
    rows[list(shares)] = np.log(rows[list(shares)].to_numpy(dtype=float))
    ratios = rows.groupby(["bin", "workload"])[list(shares)].mean().groupby(level="bin")
    means = ratios.mean()[ratios.size() == rows["workload"].nunique()]
    return means.map(np.exp)
