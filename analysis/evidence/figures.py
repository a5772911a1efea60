"""The figures of the evidence: what is concluded, gains along the way, the best window, the growing average over it."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from analysis.evidence import lengths, ratios
from analysis.evidence.conclusions import Conclusion
from analysis.evidence.data import Run
from analysis.evidence.summaries import PAPERS, PRIMARY, best_windows, by_share, common
from analysis.figures import style
from analysis.measures import intervals

LAWAS = ("lawa_0.5", "lawa_1", "lawa_2", "lawa_4", "lawa_8", "lawa_16")
COARSE = "lawa_2"  # whose evaluations all windows have in common
TWENTIETHS = tuple(round(number * 0.05, 2) for number in range(3, 20))
ALONG = {PRIMARY: "growing, 15 %", PAPERS: "LAWA of 1 %", "ema_1": "EMA of 1 %", "follows_rate_15": "follows the rate"}


def forest(conclusions: Sequence[Conclusion], workloads: dict[str, ratios.Ratio]) -> Figure:
    """The ratios of the conclusions, over workloads, and below them those of the primary average on each workload."""
    rows = [
        (f"{one.number}  {one.claim}{'' if one.enough else ', unfinished'}", one.ratio, style.COLOURS[6])
        for one in conclusions
        if one.ratio is not None
    ]
    rows += [(workload, ratio, style.COLOURS[0]) for workload, ratio in workloads.items()]
    figure, (axis,) = style.panels(1, size=(7.2, 0.27 * len(rows) + 0.7))
    for y, (_, ratio, colour) in enumerate(rows):
        axis.plot([ratio.low, ratio.high], [y, y], color=colour, linewidth=1.2)
        axis.plot([ratio.ratio], [y], "o", color=colour, markersize=5, mfc="white" if ratio.bound else colour)
    axis.axvline(1.0, color="0.5", linewidth=0.8)
    axis.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axis.invert_yaxis()
    axis.set_xscale("log")
    values = [value for _, ratio, _ in rows for value in (ratio.low, ratio.high, ratio.ratio) if np.isfinite(value)]
    style_ticks = [
        tick
        for tick in (0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0)
        if min(values) * 0.95 <= tick <= max(values) * 1.05
    ]
    axis.set_xlim(max(0.25, min(values) * 0.95), min(3.0, max(max(values), 1.0) * 1.05))
    axis.set_xticks(style_ticks, [f"{tick:g}" for tick in style_ticks])
    axis.minorticks_off()
    figure.suptitle("Conclusions, and the growing average on each workload", fontsize=10)  # wider than the axis
    axis.set_xlabel("updates / the raw weights' (lower is better)")
    keys = [
        style.mark_key("a conclusion, over workloads", marker="o", color=style.COLOURS[6], markersize=5),
        style.mark_key("one workload", marker="o", color=style.COLOURS[0], markersize=5),
        style.mark_key("hollow: bounded by missed targets", marker="o", markerfacecolor="white", markersize=5),
        Line2D([], [], color="0.35", linewidth=1.2, label="95 % interval"),
        Line2D([], [], color="0.5", linewidth=0.8, label="1: as many updates"),
    ]
    style.legend_below(figure, [axis], keys=keys)
    return figure


def along_the_way(runs: dict[str, list[Run]]) -> Figure:
    """Geometric means over workloads of the ratio at each share of training, with the interval for any workload."""
    figure, (axis,) = style.panels(1, size=(5.0, 3.2))
    names = [name for name in ALONG if all(name in run.averages for mine in runs.values() for run in mine)]
    for colour, name in zip(style.COLOURS[1:], names):
        points = [(share, found.any) for share in ratios.SHARES if (found := by_share(runs, name, share)) is not None]
        x = [share for share, _ in points]
        axis.plot(x, [one.ratio for _, one in points], "o-", color=colour, markersize=3, label=ALONG[name])
        if name == PRIMARY and len(runs) > 1:
            ends = [one.low for _, one in points], [one.high for _, one in points]
            axis.fill_between(x, *ends, color=colour, alpha=0.15, label=f"95 % interval of {ALONG[name]}")
    axis.axhline(1.0, color="0.5", linewidth=0.8, label="as many updates")
    axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.set_xlabel("to the score of the raw run at this share of training")
    axis.set_title("Updates needed along the way, over all workloads")
    axis.set_ylabel("updates / the raw run's\n(lower is better)")
    style.legend_below(figure, [axis])
    return figure


def best_window(parts: dict[str, dict[str, list[Run]]]) -> Figure:
    """The best window over the elapsed updates against the elapsed share: a line a workload and length, and a band."""
    figure, axes = style.panels(1, size=(5.6, 3.4))
    axis = axes[0]
    first = next(iter(parts))
    names = list(dict.fromkeys(workload for runs in parts.values() for workload in runs))
    for line, (part, runs) in zip(style.LINES, parts.items()):
        optima = {share: best_windows(runs, share) for share in TWENTIETHS}
        for workload in runs:
            x = [share for share in TWENTIETHS if workload in optima[share]]
            number = names.index(workload)  # one colour at every length
            colour = style.COLOURS[number] if number < len(style.COLOURS) else style.GREY
            label = f"{workload.removeprefix('mini_')}" if part == first else None
            axis.plot(x, [optima[share][workload].best for share in x], line, color=colour, linewidth=0.8, label=label)
        x = [share for share in TWENTIETHS if len(optima[share]) > 2]
        if x:
            middle, low, high = np.array([common(optima[share]) for share in x]).T
            if part == first:  # those of a few workloads would fill the panel; the table has them
                axis.fill_between(x, low, high, color="0.85", zorder=0, label="95 % interval, own length")
            about = lengths.told(runs) or "own length"
            axis.plot(x, middle, line, color="0.3", linewidth=2.5, label=f"mean, {about}")
    axis.axhline(0.15, color=style.COLOURS[4], linewidth=1, linestyle=":", label="15 %")
    axis.set_yscale("log")
    ticks = [0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3]
    axis.set_yticks(ticks, [f"{tick:.0%}" for tick in ticks])
    axis.minorticks_off()
    axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.set_xlabel("elapsed share of training")
    axis.set_title("The best window as training proceeds")
    axis.set_ylabel("best window / elapsed updates")
    style.legend_below(figure, [axis])
    return figure


def growing_over_best(runs: dict[str, list[Run]]) -> Figure:
    """Updates of the growing average over those of the best of six fixed windows, chosen in hindsight at each share."""
    figure, (axis,) = style.panels(1, size=(5.6, 3.2))
    means: dict[float, list[float]] = {}
    for number, (workload, mine) in enumerate(runs.items()):
        points = []
        for share in TWENTIETHS:
            logs = [ratios.gap(run, PRIMARY, LAWAS, share, COARSE) for run in mine]
            known = [log for log in logs if np.isfinite(log)]
            if known:
                points.append((share, float(np.exp(np.mean(known)))))
                means.setdefault(share, []).append(float(np.mean(known)))
        colour = style.COLOURS[number % len(style.COLOURS)] if number < len(style.COLOURS) else style.GREY
        axis.plot(*zip(*points), color=colour, linewidth=0.8, label=workload.removeprefix("mini_"))
    shares = [share for share, logs in means.items() if len(logs) > 2]
    if shares:
        ends = [intervals.student(np.array(means[share])) for share in shares]
        low, high = np.exp([end.low for end in ends]), np.exp([end.high for end in ends])
        axis.fill_between(shares, low, high, color="0.85", zorder=0, label="95 % interval")
        axis.plot(
            shares,
            [np.exp(np.mean(means[share])) for share in shares],
            color="0.3",
            linewidth=2.5,
            label="geometric mean",
        )
    axis.axhline(1.0, color="0.5", linewidth=0.8, label="as many updates")
    axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.set_xlabel("to the score of the raw run at this share of training")
    axis.set_title("One growing average against the best fixed window")
    axis.set_ylabel("updates of the growing average /\nthe best fixed window's (lower is better)")
    style.legend_below(figure, [axis])
    return figure
