"""Run submissions x workloads x seeds, several at a time.

    python -m scripts.suite --submissions=nadamw,lawa,ema --workloads=mini_criteo1tb --seeds=3
    python -m scripts.suite --comparison=comparisons/lawa_horizon.yaml --experiment_dir=runs/horizon
    python -m scripts.suite --comparison=comparisons/merges.yaml --workloads=mini_ogbg --seeds=1 --experiment_dir=runs/q

Every run is a process of its own with one thread, in <experiment_dir>/<submission>/study_<seed>. Calling the command
again skips the finished runs and continues the others, so that it can be stopped at any moment.

Of a submission's search space each workload takes one trial: the one whose learning rate is best for the baseline. It
is recorded in <search_spaces>/tuned_trials.json (docs/results/calibration.md tells how it was found). Another base
optimizer may have trials of its own there. A submission without a search space tunes itself: it has one point for all
workloads.

A comparison is one of the paper's experiments in comparisons/. It brings its own submissions and grid of
hyperparameters. It brings the workloads and seeds too, unless --workloads and --seeds say otherwise. Where it says
`offline: true`, runs without an average keep snapshots. The submissions that average are made of these, and evaluated
on the validation set alone.
"""

import os
import sys
from pathlib import Path

from absl import flags

from analysis.comparisons.comparison import load
from launching import suite_jobs
from launching.suite import Suite
from miniperf import command_line, frameworks, workloads
from scripts.start import start
from weight_averaging.errors import UsageError

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "comparison", None, "File of an experiment (YAML): its submissions, search spaces, workloads and seeds."
)
flags.DEFINE_enum("framework", "pytorch", frameworks.NAMES, "Framework of the submissions and workloads.")
flags.DEFINE_list(
    "submissions",
    ["nadamw", "lawa", "ema"],
    "Names of submissions, folders of submissions/<framework>, with commas between.",
)
flags.DEFINE_list(
    "workloads",
    None,
    "Names of workloads, with commas between; default: all in this framework, or those of the comparison.",
)
flags.DEFINE_integer(
    "seeds",
    None,
    "Number of runs of each, with the seeds 0, 1, ...; default: 1, or that of the comparison.",
    lower_bound=1,
)
flags.DEFINE_string(
    "search_spaces",
    "tuning_search_spaces/miniperf",
    "Folder with the search space of each submission, <submission>.json, and tuned_trials.json.",
)
flags.DEFINE_string("experiment_dir", "runs/suite", "Root folder of the runs.")
flags.DEFINE_integer(
    "evaluations", None, "Number of evaluations, evenly spaced; default: 50, and in short runs one every 10 updates.",
    lower_bound=1,
)  # fmt: skip
flags.DEFINE_integer(
    "max_global_steps", None, "Number of updates in a run; default: the workload's step_hint.", lower_bound=1
)
flags.DEFINE_integer("jobs", os.cpu_count(), "Number of runs at a time; default: one for each core.", lower_bound=1)


def asked() -> Suite:
    """What the flags ask for. UsageError for those that do not go together, and for an unusable comparison."""
    comparison = None
    submissions, search_spaces = FLAGS.submissions, Path(FLAGS.search_spaces)
    if FLAGS.comparison is not None:
        comparison = load(FLAGS.comparison)
        for name in ("submissions", "search_spaces"):
            if FLAGS[name].present:
                raise UsageError(f"--{name} cannot be given with --comparison: {FLAGS.comparison} says which")
        submissions, search_spaces = comparison.submissions, comparison.search_spaces
        if comparison.offline and FLAGS.framework != "pytorch":
            raise UsageError(
                f"--framework={FLAGS.framework}: {FLAGS.comparison} averages snapshots, which pytorch writes"
            )
    of_comparison = comparison.workloads if comparison is not None else None
    return Suite(
        framework=FLAGS.framework,
        submissions=submissions,
        workloads=FLAGS.workloads or of_comparison or sorted(workloads.names(FLAGS.framework)),
        seeds=FLAGS.seeds or (comparison.seeds if comparison is not None else 1),
        search_spaces=search_spaces,
        experiment_dir=Path(FLAGS.experiment_dir),
        evaluations=FLAGS.evaluations,
        max_global_steps=FLAGS.max_global_steps,
        comparison=comparison,
    )


def run() -> None:
    try:
        failed = suite_jobs.run(asked().jobs(), FLAGS.jobs)
    except KeyboardInterrupt as end:
        after = f"the same command goes on from the last checkpoints in {FLAGS.experiment_dir}"
        command_line.stopped(after, end)
    if failed:
        print(failed[0].log.read_text()[-2000:], file=sys.stderr)
        sys.exit(1)
    compare = f"python -m scripts.report --runs={FLAGS.experiment_dir}"
    compare += f" --comparison={FLAGS.comparison}" if FLAGS.comparison is not None else ""
    print(f"all runs are in {FLAGS.experiment_dir}; compare them: {compare}")


if __name__ == "__main__":
    start(run)
