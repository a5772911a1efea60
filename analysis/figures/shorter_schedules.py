"""The paper's Fig. 12: is the average of a long run, at any moment, as good as a run annealed by that moment?"""

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures import panels, style
from analysis.measures import curves, horizon

ANNEALED = "{}, annealed by then"


def against_shorter(
    of_runs: dict[str, pd.DataFrame], targets: pd.DataFrame, baseline: str, trials: pd.DataFrame
) -> Figure:
    """One panel per workload: the validation metric along the longest schedule, and where shorter schedules end.

    The longest schedule has the baseline's runs and their averages (mean over seeds, band from the lowest to the
    highest). Of each shorter schedule there is the last value of the baseline's runs, at the update where it ends.

    Args:
        of_runs, targets: of `Measured.curves` and `targets.resolve`.
        baseline: the submission whose runs are shortened.
        trials: of `Measured.trials`, with the columns base and line, the average's name.
    """
    lengths = [
        horizon.schedule_length(h, targets["step_hint"][w]) for h, w in zip(trials["hparams"], trials["workload"])
    ]
    trials = trials.assign(length=lengths)
    longest = trials["length"] == trials.groupby("workload")["length"].transform("max")
    looks = style.looks(trials["line"], baseline)
    colour = next((c for c in style.COLOURS if c not in {own for own, _ in looks.values()}), style.GREY)
    figure, axes = style.panels(len(targets))
    several = False
    for axis, (workload, target) in zip(axes, targets.iterrows()):
        here = trials[trials["workload"] == workload]
        for name, (own, line) in looks.items():
            mine = here[longest & (here["line"] == name)]
            x, mean, low, high = curves.band([of_runs[folder] for folder in mine["folder"]], "steps")
            axis.plot(x, mean, color=own, linestyle=line, label=name, linewidth=1 if name == baseline else 1.5)
            if len(mine) > 1:
                axis.fill_between(x, low, high, color=own, alpha=0.15, linewidth=0)
                several = True
        ends = here[here["base"] == baseline].groupby("length")["final"].agg(["mean", "min", "max"])
        spread = [ends["mean"] - ends["min"], ends["max"] - ends["mean"]]
        axis.errorbar(ends.index, ends["mean"], yerr=spread, fmt="o--", color=colour, markersize=4, linewidth=1,
                      label=ANNEALED.format(baseline))  # fmt: skip
        style.target_line(axis, target["target"])
        bottom, top = curves.interesting_range(here[longest], of_runs, target["lower"], target["target"])
        axis.set_ylim(min(bottom, ends["min"].min()), max(top, ends["max"].max()))
        measure = f"validation {panels.metric(target)}"
        axis.set(title=workload, xlabel="updates", ylabel=panels.labelled(measure, target["lower"]))
        axis.set_xlim(left=0)
    style.legend_below(figure, axes, keys=[style.band_key("lowest to highest seed")] if several else [])
    return figure
