"""Tune the baseline on a miniature workload, set its targets as AlgoPerf sets its own, see whether it is well posed.

    python -m scripts.calibrate --workloads=mini_criteo1tb --experiment_dir=runs/calibration

The rules, with their reasons: docs/results/rules.md. They look at the baseline alone.

1. With seed 0 the baseline trains at the learning rate of tuned_trials.json and at its neighbours in the search space.
   It goes on from there until the rate with the best validation metric at the end has a worse one on both sides. That
   is the tuned one. AlgoPerf's rule: one search space for all workloads, the best of its trials for each.
2. At that rate it trains with --seeds seeds. Of each run the best metric within the workload's `target_share` of its
   updates counts. The target is the median of these over seeds, for validation and for test.
3. At that rate it trains with three of them with a constant learning rate.

Prints the targets and four checks. Is the best rate inside the grid? Does annealing help by more than the seeds differ?
Do all seeds reach the target? Do the updates to it differ by less than a tenth? Beside the batch size it states the
noise scale of the gradients where the target lies. All is written into <experiment_dir>/calibration.md. Finished runs
are not repeated, and those of scripts.suite with as many evaluations are the same. What it finds goes by hand into the
workload (targets) and into tuned_trials.json beside the search space.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from launching import suite_jobs
from launching.suite_jobs import Training
from miniperf import search, workloads
from scripts.start import start
from weight_averaging.errors import UsageError
from weight_averaging.interrupts import importing

if TYPE_CHECKING:
    import pandas as pd

    from miniperf.calibration import Run

FLAGS = flags.FLAGS

flags.DEFINE_list("workloads", sorted(workloads.WORKLOADS), "Names of miniature workloads, with commas between.")
flags.DEFINE_integer("seeds", 5, "Number of runs at the tuned learning rate.", lower_bound=2)
flags.DEFINE_string("experiment_dir", "runs/calibration", "Root folder of the runs.")
flags.DEFINE_string(
    "search_spaces",
    "tuning_search_spaces/miniperf",
    "Folder with <submission>.json, learning rates, and the tuned trials.",
)
flags.DEFINE_integer("evaluations", 50, "Number of evaluations in a run, evenly spaced.", lower_bound=1)
flags.DEFINE_integer("jobs", os.cpu_count(), "Number of runs at a time; default: one for each core.", lower_bound=1)

NOISE_BATCHES = 64


def job(run: "Run") -> Training:
    from miniperf.calibration import place

    workload = workloads.make(run.workload)
    return Training(
        framework="pytorch",
        submission=run.submission,
        workload=run.workload,
        seed=run.seed,
        trials=[run.trial],
        search_space=Path(FLAGS.search_spaces, f"{run.submission}.json"),
        experiment_dir=Path(FLAGS.experiment_dir),
        steps=workload.step_hint,
        evaluate_every=max(1, workload.step_hint // FLAGS.evaluations),
        snapshots_every=place(workload),
    )


def folder(run: "Run") -> Path:
    return job(run).folder(run.trial)


def tables(runs: "list[Run]") -> "list[pd.DataFrame]":
    """The evaluations of each run, trained now if they are not there yet."""
    import pandas as pd

    if failed := suite_jobs.run([job(run) for run in runs], FLAGS.jobs):
        raise UsageError(f"{failed[0].folder(failed[0].trials[0])}: the run failed: see {failed[0].log}")
    return [pd.read_csv(folder(run) / "eval_measurements.csv") for run in runs]


def tuned_before() -> dict[str, int]:
    """The tuned trials of the last calibration, by workload."""
    path = Path(FLAGS.search_spaces, "tuned_trials.json")
    return json.loads(path.read_text()) if path.exists() else {}


def noise_scale(run: "Run") -> float:
    """Of the gradients at the snapshot that a run kept where the target lies, in examples."""
    from miniperf import random_utils
    from miniperf.calibration import BASELINE, place
    from miniperf.noise_scale import simple_noise_scale, workload_gradients
    from weight_averaging.offline import Snapshots

    workload: Any = workloads.make(run.workload)
    hyperparameters = search.load(f"{FLAGS.search_spaces}/{BASELINE}.json", None)[run.trial - 1]
    model, _ = workload.init_model_fn(random_utils.key_from_seed(0))
    snapshots = Snapshots(folder(run) / "snapshots")
    model.load_state_dict(snapshots.state(snapshots.latest_up_to(place(workload))))
    key = random_utils.key_from_seed(1)
    queue = workload._build_input_queue(key, "train", "", workload.batch_size)
    batches = (next(queue) for _ in range(NOISE_BATCHES))
    gradients = workload_gradients(workload, model, batches, getattr(hyperparameters, "dropout_rate", 0.0))
    return simple_noise_scale(gradients, workload.batch_size)


def run() -> None:
    with importing():  # here, since a wrong flag is told without torch and pandas
        from miniperf.calibration import BASELINE, HEAD, calibrate
    for name in FLAGS.workloads:
        if name not in workloads.WORKLOADS:
            raise UsageError(f"--workloads={name} is no miniature; choose from {', '.join(workloads.WORKLOADS)}")
    rates = [point.learning_rate for point in search.load(f"{FLAGS.search_spaces}/{BASELINE}.json", None)]
    before = tuned_before()
    findings = []
    for name in FLAGS.workloads:
        workload = workloads.make(name)
        found = calibrate(name, workload, rates, before.get(name), FLAGS.seeds, tables, noise_scale)
        findings.append(found)
        print("\n".join([*found[0], *HEAD, f"| {' | '.join(found[1])} |"]), flush=True)
    path = Path(FLAGS.experiment_dir, "calibration.md")
    rows = [f"| {' | '.join(row)} |" for _, row in findings]
    path.write_text("\n".join([*HEAD, *rows, "", *(line for lines, _ in findings for line in lines)]))
    print(f"written: {path}; targets go into the workloads, tuned trials into {FLAGS.search_spaces}/tuned_trials.json")


if __name__ == "__main__":
    start(run, "the same command goes on: finished runs are not repeated, others resume")
