"""What the runs of a baseline say of a miniature: its tuned rate, its targets, and whether it is well posed.

The rules: docs/results/rules.md; `scripts.calibrate` makes the runs.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd

BASELINE, CONSTANT = "nadamw", "nadamw_no_decay"
MOST_SPREAD = 0.1  # of the updates to the target, relative
CONSTANT_SEEDS = 3  # what decay gains is many times what seeds differ by, or the workload is no good


class Run(NamedTuple):
    """A run of the baseline, or of it at a constant rate, on a workload."""

    workload: str
    submission: str
    seed: int
    trial: int


def place(workload: Any) -> int:
    """The update by which the median run is to have reached the target."""
    return max(1, round(workload.target_share * workload.step_hint))


def calibrate(
    name: str,
    workload: Any,
    rates: list[float],
    before: int | None,
    seeds: int,
    tables: Callable[[list[Run]], list[pd.DataFrame]],
    noise_scale: Callable[[Run], float],
) -> tuple[list[str], list[str]]:
    """The findings on one workload, as lines of Markdown, and its row of the table of checks.

    Args:
        rates: learning rates of the search space, ascending.
        before: the trial, from 1, that was the tuned one; None: try from the middle.
        seeds: of the runs at the tuned rate.
        tables: the evaluations of each run, as in eval_measurements.csv.
        noise_scale: of the gradients where the target lies in this run, in examples.
    """
    metric, steps = workload.target_metric_name, workload.step_hint
    column, columns = f"validation/{metric}", [f"validation/{metric}", f"test/{metric}"]
    sign = 1 if workload.higher_is_better else -1
    best = pd.DataFrame.max if workload.higher_is_better else pd.DataFrame.min

    def worth(trial: int) -> tuple[float, int]:
        """Of those that diverged the smallest rate leads to one that does not."""
        final = sign * float(grid[trial][column].iloc[-1])
        return (final, 0) if math.isfinite(final) else (-math.inf, -trial)

    grid: dict[int, pd.DataFrame] = {}
    tuned = before if before and before <= len(rates) else (len(rates) + 1) // 2
    wanted = around(tuned, len(rates))
    while wanted:
        grid.update(zip(wanted, tables([Run(name, BASELINE, 0, trial) for trial in wanted]), strict=True))
        # Of equals the one that was tuned before, then the smaller rate.
        tuned = max([tuned, *sorted(grid)], key=worth)
        wanted = [trial for trial in around(tuned, len(rates)) if trial not in grid]
    lines = [f"## {name}", "", f"| learning rate | best {column} | final |", "|---|---|---|"]
    lines += [
        f"| {rates[trial - 1]:g} | {best(table[[column]])[column]:.5f} | {table[column].iloc[-1]:.5f} |"
        for trial, table in sorted(grid.items())
    ]

    all_seeds, fewer = range(seeds), range(min(CONSTANT_SEEDS, seeds))
    runs = [Run(name, BASELINE, seed, tuned) for seed in all_seeds] + [
        Run(name, CONSTANT, seed, tuned) for seed in fewer
    ]
    both = tables(runs)
    decayed, constant = both[:seeds], both[seeds:]
    reached = pd.DataFrame([best(t.loc[t["global_step"] <= place(workload), columns]) for t in decayed])
    # As many digits as are written into the workload, so that the checks are about that very target.
    targets = {name: float(f"{value:.5f}") for name, value in reached.fillna(-sign * math.inf).median().items()}
    taken = [first_step(table, column, targets[column], sign) for table in decayed]
    ends, constant_ends = (pd.Series([t[column].iloc[-1] for t in group]) for group in (decayed, constant))
    # One that diverged is no lucky omission: without a number there is no gain.
    gain = sign * (ends.mean(skipna=False) - constant_ends.mean(skipna=False))
    spread = max(ends.std(), constant_ends.std())
    hits = pd.Series([step for step in taken if step is not None], dtype=float)
    relative = hits.std() / hits.mean()
    scale = noise_scale(Run(name, BASELINE, 0, tuned))

    def listed(values: pd.Series) -> str:
        return ", ".join(f"{value:.5f}" for value in sorted(values))

    lines += [
        "",
        f"Tuned: trial {tuned}, learning rate {rates[tuned - 1]:g}. Best {column} in the first "
        f"{workload.target_share:.0%} of {steps} updates, {seeds} seeds: {listed(reached[column])}. Updates "
        f"to the target: {', '.join('missed' if step is None else str(step) for step in taken)}.",
        "",
        f"Final {column}: {listed(ends)}; at a constant rate: {listed(constant_ends)}.",
        "",
        f"Targets: validation **{targets[columns[0]]:.5f}**, test **{targets[columns[1]]:.5f}**.",
        "",
    ]
    row = [
        name,
        said(1 < tuned < len(rates), f"{rates[tuned - 1]:g}"),
        said(gain > spread, f"{gain / spread:.1f} SD"),
        said(len(hits) == seeds, f"{len(hits)}/{seeds}"),
        said(len(hits) > 1 and relative < MOST_SPREAD, f"{relative:.1%}"),
        f"{hits.mean() / steps:.2f}",
        str(workload.batch_size),
        f"{scale:.0f}" if math.isfinite(scale) else "none found",
    ]
    return lines, row


def around(trial: int, count: int) -> list[int]:
    """A trial and its neighbours, of so many."""
    return [near for near in (trial - 1, trial, trial + 1) if 1 <= near <= count]


def first_step(table: pd.DataFrame, column: str, target: float, sign: int) -> int | None:
    """The updates after which an evaluation first reached the target."""
    there = table.loc[sign * table[column] >= sign * target, "global_step"]
    return None if there.empty else int(there.iloc[0])


def said(good: bool, what: str) -> str:
    return what if good else f"**no**: {what}"


HEAD = [
    "| workload | best rate inside | annealing gains | reach it | spread of steps | mean place | batch | noise scale |",
    "|---|---|---|---|---|---|---|---|",
]
