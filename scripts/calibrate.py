"""Tune the baseline on a miniature workload, set its targets as AlgoPerf sets its own, see whether it is well posed.

    python -m scripts.calibrate --workloads=mini_criteo1tb --experiment_dir=runs/calibration

The rules, with their reasons: docs/results/rules.md. They look at the baseline alone.

1. The baseline trains at every learning rate of its search space with seed 0; the rate with the best validation metric
   at the end is the tuned one. AlgoPerf's rule: one search space for all workloads, the best of its trials for each.
2. At that rate it trains with --seeds seeds. The target is the median over seeds of the best metric that a run reaches
   within the workload's `target_share` of its updates, for validation and for test.
3. At that rate it trains as often with a constant learning rate.

Prints the targets and four checks: is the best rate inside the grid, does annealing help by more than the seeds differ,
do all seeds reach the target, do the updates to it differ by less than a tenth? Beside the batch size it states the
noise scale of the gradients where the target lies. All is written into <experiment_dir>/calibration.md. Finished runs
are not repeated, and those of scripts.suite with as many evaluations are the same. What it finds goes by hand into the
workload (targets) and into tuned_trials.json beside the search space.
"""

import concurrent.futures
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from absl import app, flags
from tqdm import tqdm

from miniperf import random_utils, search, workloads
from miniperf.errors import UsageError
from miniperf.noise_scale import simple_noise_scale, workload_gradients
from weight_averaging.offline import Snapshots

FLAGS = flags.FLAGS

flags.DEFINE_list("workloads", sorted(workloads.WORKLOADS), "Workloads to calibrate.")
flags.DEFINE_integer("seeds", 5, "Runs at the tuned learning rate.", lower_bound=2)
flags.DEFINE_string("experiment_dir", "runs/calibration", "Root folder of the runs.")
flags.DEFINE_string("search_spaces", "tuning_search_spaces/miniperf", "Folder with <submission>.json: learning rates.")
flags.DEFINE_integer("evaluations", 50, "Evaluations in a run, evenly spaced.", lower_bound=1)
flags.DEFINE_integer("jobs", os.cpu_count(), "Runs at a time.", lower_bound=1)

BASELINE, CONSTANT = "nadamw", "nadamw_no_decay"
MOST_SPREAD = 0.1  # of the updates to the target, relative
NOISE_BATCHES = 64


@dataclass(frozen=True)
class Run:
    """A run of the baseline, or of it at a constant rate."""

    submission: str
    workload: str
    seed: int
    trial: int

    @property
    def folder(self) -> Path:
        study = Path(FLAGS.experiment_dir, self.submission, f"study_{self.seed}")
        return study / f"{self.workload}_pytorch" / f"trial_{self.trial}"

    def table(self) -> pd.DataFrame:
        """Its evaluations, trained now if they are not there yet."""
        workload = workloads.make(self.workload)
        steps = workload.step_hint
        if not (self.folder / f"checkpoint_{steps}").exists():
            command = [
                sys.executable, "-m", "scripts.run", f"--submission={self.submission}", f"--workload={self.workload}",
                f"--rng_seed={self.seed}", f"--experiment_dir={FLAGS.experiment_dir}", "--resume_last_run",
                f"--tuning_search_space={FLAGS.search_spaces}/{self.submission}.json", "--continue_after_target",
                f"--hparam_start_index={self.trial - 1}", f"--hparam_end_index={self.trial}",
                f"--eval_every_n_steps={max(1, steps // FLAGS.evaluations)}", "--nosave_intermediate_checkpoints",
                f"--save_snapshots_every_n_steps={place(workload)}",
            ]  # fmt: skip
            result = subprocess.run(
                command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
            )
            if result.returncode:
                raise UsageError(f"{self.folder}: the run failed: {' '.join(result.stderr.splitlines()[-1:])}")
        return pd.read_csv(self.folder / "eval_measurements.csv")


def place(workload: Any) -> int:
    """The update by which the median run is to have reached the target."""
    return max(1, round(workload.target_share * workload.step_hint))


def calibrate(name: str, tables: Any) -> tuple[list[str], list[str]]:
    """The findings on one workload, as lines of Markdown, and its row of the table of checks.

    Args:
        tables: called with runs, gives their evaluations.
    """
    workload: Any = workloads.make(name)
    metric, steps = workload.target_metric_name, workload.step_hint
    column, columns = f"validation/{metric}", [f"validation/{metric}", f"test/{metric}"]
    sign = 1 if workload.higher_is_better else -1
    best = pd.DataFrame.max if workload.higher_is_better else pd.DataFrame.min

    rates = [point.learning_rate for point in search.load(f"{FLAGS.search_spaces}/{BASELINE}.json", None)]
    grid = tables([Run(BASELINE, name, 0, trial) for trial in range(1, len(rates) + 1)])
    finals = [table[column].iloc[-1] for table in grid]
    tuned = 1 + finals.index(max(finals, key=lambda final: sign * final))
    lines = [f"## {name}", "", f"| learning rate | best {column} | final |", "|---|---|---|"]
    lines += [
        f"| {rate:g} | {best(table[[column]])[column]:.5f} | {final:.5f} |"
        for rate, table, final in zip(rates, grid, finals, strict=True)
    ]

    seeds = range(FLAGS.seeds)
    both = tables([Run(submission, name, seed, tuned) for submission in (BASELINE, CONSTANT) for seed in seeds])
    decayed, constant = both[: len(seeds)], both[len(seeds) :]
    reached = pd.DataFrame([best(t.loc[t["global_step"] <= place(workload), columns]) for t in decayed])
    # As many digits as are written into the workload, so that the checks are about that very target.
    targets = {name: float(f"{value:.5f}") for name, value in reached.median().items()}
    taken = [first_step(table, column, targets[column], sign) for table in decayed]
    ends, constant_ends = (pd.Series([t[column].iloc[-1] for t in group]) for group in (decayed, constant))
    gain, spread = sign * (ends.mean() - constant_ends.mean()), max(ends.std(), constant_ends.std())
    hits = pd.Series([step for step in taken if step is not None], dtype=float)
    relative = hits.std() / hits.mean()
    scale = noise_scale(workload, Run(BASELINE, name, 0, tuned))

    def listed(values: pd.Series) -> str:
        return ", ".join(f"{value:.5f}" for value in sorted(values))

    lines += [
        "",
        f"Tuned: trial {tuned}, learning rate {rates[tuned - 1]:g}. Best {column} in the first "
        f"{workload.target_share:.0%} of {steps} updates, {len(seeds)} seeds: {listed(reached[column])}. Updates "
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
        said(len(hits) == len(seeds), f"{len(hits)}/{len(seeds)}"),
        said(len(hits) > 1 and relative < MOST_SPREAD, f"{relative:.1%}"),
        f"{hits.mean() / steps:.2f}",
        str(workload.batch_size),
        f"{scale:.0f}" if math.isfinite(scale) else "none found",
    ]
    return lines, row


def first_step(table: pd.DataFrame, column: str, target: float, sign: int) -> int | None:
    """The updates after which an evaluation first reached the target."""
    there = table.loc[sign * table[column] >= sign * target, "global_step"]
    return None if there.empty else int(there.iloc[0])


def noise_scale(workload: Any, run: Run) -> float:
    """Of the gradients at the snapshot that a run kept where the target lies, in examples."""
    hyperparameters = search.load(f"{FLAGS.search_spaces}/{BASELINE}.json", None)[run.trial - 1]
    model, _ = workload.init_model_fn(random_utils.key_from_seed(0))
    model.load_state_dict(Snapshots(run.folder / "snapshots").state(place(workload)))
    key = random_utils.key_from_seed(1)
    queue = workload._build_input_queue(key, "train", "", workload.batch_size)
    batches = (next(queue) for _ in range(NOISE_BATCHES))
    gradients = workload_gradients(workload, model, batches, getattr(hyperparameters, "dropout_rate", 0.0))
    return simple_noise_scale(gradients, workload.batch_size)


def said(good: bool, what: str) -> str:
    return what if good else f"**no**: {what}"


HEAD = [
    "| workload | best rate inside | annealing gains | reach it | spread of steps | mean place | batch | noise scale |",
    "|---|---|---|---|---|---|---|---|",
]


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    try:
        rates = search.load(f"{FLAGS.search_spaces}/{BASELINE}.json", None)
        for name in FLAGS.workloads:
            workloads.make(name)
        total = len(FLAGS.workloads) * (len(rates) + 2 * FLAGS.seeds)
        with (
            concurrent.futures.ThreadPoolExecutor(FLAGS.jobs) as pool,
            tqdm(total=total, unit="run", disable=None) as bar,
        ):

            def tables(runs: list[Run]) -> list[pd.DataFrame]:
                result = []
                for table in pool.map(Run.table, runs):
                    bar.update()
                    result.append(table)
                return result

            findings = []
            for name in FLAGS.workloads:
                findings.append(calibrate(name, tables))
                bar.write("\n".join([*findings[-1][0], *HEAD, f"| {' | '.join(findings[-1][1])} |"]))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    path = Path(FLAGS.experiment_dir, "calibration.md")
    rows = [f"| {' | '.join(row)} |" for _, row in findings]
    path.write_text("\n".join([*HEAD, *rows, "", *(line for lines, _ in findings for line in lines)]))
    print(f"written: {path}")


if __name__ == "__main__":
    app.run(main)
