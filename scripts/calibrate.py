"""Tune the baseline's learning rate and set the targets of a miniature workload, as AlgoPerf sets its own.

    python -m scripts.calibrate --workloads=mini_criteo1tb --experiment_dir=runs/calibration

1. The baseline trains at every learning rate of its search space with seed 0; the rate with the best validation metric
   at the end is the tuned one. AlgoPerf's rule: one search space for all workloads, the best of its trials for each.
2. At that rate it trains with --seeds seeds. The target is the median over seeds of the best metric that a run reaches
   within the share of its updates that the workload says (`target_share`: 80 % unless its big twin's target lies
   elsewhere), for validation and for test.

Prints both and writes them into <experiment_dir>/calibration.md. Finished runs are not repeated. What it finds goes by
hand into the workload (targets) and into tuned_trials.json beside the search space.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from absl import app, flags
from tqdm import tqdm

from miniperf import search, workloads
from miniperf.errors import UsageError

FLAGS = flags.FLAGS

flags.DEFINE_list("workloads", sorted(workloads.WORKLOADS), "Workloads to calibrate.")
flags.DEFINE_integer("seeds", 5, "Runs at the tuned learning rate.", lower_bound=1)
flags.DEFINE_string("experiment_dir", "runs/calibration", "Root folder of the runs.")
flags.DEFINE_string("search_space", "tuning_search_spaces/miniperf/nadamw.json", "The baseline's learning rates.")
flags.DEFINE_integer("evaluations", 40, "Evaluations in a run, evenly spaced.", lower_bound=1)


def train(workload: str, seed: int, trial: int, steps: int) -> pd.DataFrame:
    """The evaluations of one run of the baseline, trained now if it is not there yet."""
    folder = Path(FLAGS.experiment_dir, "nadamw", f"study_{seed}", f"{workload}_pytorch", f"trial_{trial}")
    if (folder / f"checkpoint_{steps}").exists():
        return pd.read_csv(folder / "eval_measurements.csv")
    command = [
        sys.executable, "-m", "scripts.run", "--submission=nadamw", f"--workload={workload}", f"--rng_seed={seed}",
        f"--tuning_search_space={FLAGS.search_space}", f"--experiment_dir={FLAGS.experiment_dir}",
        f"--hparam_start_index={trial - 1}", f"--hparam_end_index={trial}", "--continue_after_target",
        f"--eval_every_n_steps={max(1, steps // FLAGS.evaluations)}", "--nosave_intermediate_checkpoints",
        "--resume_last_run",
    ]  # fmt: skip
    result = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    if result.returncode:
        raise UsageError(f"a run failed: {' '.join(result.stderr.splitlines()[-1:])}")
    return pd.read_csv(folder / "eval_measurements.csv")


def calibrate(name: str, rates: list[float], bar: tqdm) -> list[str]:
    """The learning-rate grid and the targets of one workload, as lines of Markdown."""
    workload = workloads.make(name)
    metric, steps = workload.target_metric_name, workload.step_hint
    best = pd.DataFrame.max if workload.higher_is_better else pd.DataFrame.min
    column = f"validation/{metric}"

    lines = [f"## {name}", "", f"| learning rate | best {column} | final |", "|---|---|---|"]
    finals = []
    for trial, rate in enumerate(rates, start=1):
        table = train(name, 0, trial, steps)
        bar.update()
        finals.append(table[column].iloc[-1])
        lines.append(f"| {rate:g} | {best(table[[column]])[column]:.5f} | {finals[-1]:.5f} |")
    tuned = 1 + finals.index(max(finals) if workload.higher_is_better else min(finals))

    columns = [column, f"test/{metric}"]
    share, reached = workload.target_share, []
    for seed in range(FLAGS.seeds):
        table = train(name, seed, tuned, steps)
        bar.update()
        reached.append(best(table.loc[table["global_step"] <= share * steps, columns]))
    targets = pd.DataFrame(reached).median()
    spread = ", ".join(f"{value:.5f}" for value in sorted(row[column] for row in reached))
    return [
        *lines,
        "",
        f"Tuned: trial {tuned}, learning rate {rates[tuned - 1]:g}. Best {column} in the first {share:.0%} of {steps} "
        f"updates, {FLAGS.seeds} seeds: {spread}.",
        "",
        f"Targets: validation **{targets[columns[0]]:.5f}**, test **{targets[columns[1]]:.5f}**.",
        "",
    ]


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    lines = []
    try:
        rates = [point.learning_rate for point in search.load(FLAGS.search_space, None)]
        with tqdm(total=len(FLAGS.workloads) * (len(rates) + FLAGS.seeds), unit="run", disable=None) as bar:
            for name in FLAGS.workloads:
                lines += calibrate(name, rates, bar)
                bar.write("\n".join(lines[-6:]))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    path = Path(FLAGS.experiment_dir, "calibration.md")
    path.write_text("\n".join(lines))
    print(f"written: {path}")


if __name__ == "__main__":
    app.run(main)
