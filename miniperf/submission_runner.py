r"""Run a submission on one of miniperf's workloads, with the flags of the official runner.

    python -m miniperf.submission_runner --framework=pytorch --workload=mini_criteo1tb \
      --submission_path=submissions/pytorch/lawa/submission.py --tuning_search_space=tuning_search_spaces/lawa.json \
      --num_tuning_trials=5 --experiment_dir=runs --experiment_name=lawa --rng_seed=0

In PyTorch it also runs on several ranks: torchrun --standalone --nproc_per_node=8 -m miniperf.submission_runner ...
"""

import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags
from absl import logging as absl_logging

from miniperf import command_line, frameworks, search, submission, workloads
from miniperf.errors import storage_errors
from miniperf.logs import check_hyperparameters, experiment_folder, write_hyperparameters
from miniperf.progress import summary
from miniperf.runner import train_once
from miniperf.settings import Settings
from weight_averaging.errors import UsageError
from weight_averaging.interrupts import importing, raise_again, status_of, terminate_alike

FLAGS = flags.FLAGS

flags.DEFINE_string("workload", None, f"The workload: {', '.join([*workloads.WORKLOADS, *workloads.FULL_SIZE])}.")
flags.DEFINE_string("framework", "pytorch", f"Framework of the submission: {' or '.join(frameworks.NAMES)}.")
flags.DEFINE_string("submission_path", None, "File of the submission (.py), relative to the working directory.")
flags.DEFINE_enum(
    "tuning_ruleset",
    "external",
    ["external", "self"],
    "Tuning ruleset: with a search space (external), or without one (self).",
)
flags.DEFINE_string("tuning_search_space", None, "File of the search space (JSON), for external tuning.")
flags.DEFINE_integer("num_tuning_trials", 1, "Number of trials: points of the search space that are trained.")
flags.DEFINE_integer("hparam_start_index", None, "Number of the first trial to train, counted from 0.")
flags.DEFINE_integer("hparam_end_index", None, "Number of the trial to stop before, counted from 0.")
flags.DEFINE_string("data_dir", "", "Folder of the data, for workloads that do not bring it along.")
flags.DEFINE_string("experiment_dir", None, "Root folder of all runs.")
flags.DEFINE_string("experiment_name", None, "Name of the experiment, which becomes a folder below --experiment_dir.")
flags.DEFINE_boolean("save_checkpoints", True, "Save a checkpoint at every evaluation and at the end.")
flags.DEFINE_boolean(
    "save_intermediate_checkpoints",
    True,
    "Keep all checkpoints, not the last two alone. scripts.run keeps two by default.",
)
flags.DEFINE_boolean("resume_last_run", False, "Continue a run from its last checkpoints.")
flags.DEFINE_boolean("overwrite", False, "Delete a run of the same name, and start anew.")
flags.DEFINE_integer(
    "max_global_steps",
    None,
    "Number of updates to stop after; default: that of the time budget. Under scripts.run it is the step_hint.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "rng_seed",
    None,
    "Seed of data order, initialisation and dropout; default: drawn anew. Under scripts.run it is 0, officially 1.",
)
# Beyond the official flags:
flags.DEFINE_integer(
    "eval_every_n_steps", None, "Number of updates between evaluations. No time budget ends such a run.", lower_bound=1
)
flags.DEFINE_boolean("continue_after_target", False, "Train on after both targets are reached, for whole curves.")
flags.DEFINE_integer(
    "save_snapshots_every_n_steps",
    None,
    "Number of updates between snapshots of the weights, which scripts.average_checkpoints averages afterwards.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "checkpoint_every_n_steps",
    None,
    "Number whose multiples get a checkpoint, among the evaluated updates; default: all of these.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "micro_batch_size",
    None,
    "Number of examples that go through the model at a time, on each rank. Their gradients are added.",
    lower_bound=1,
)
flags.DEFINE_boolean(
    "torch_compile",
    None,
    "Use torch.compile; default: no. Under the official harness the default is yes, where it can.",
)


def run() -> None:
    """Run the trials that the flags ask for. UsageError for anything the user can mend, before any training."""
    trials = check_flags()
    with importing():
        framework = frameworks.load(FLAGS.framework)
    framework.begin()
    with framework.connected():
        _run(framework, trials)


def check_flags() -> list[Any]:
    """The hyperparameters of each trial. UsageError for what can be told to be wrong before a framework is imported."""
    needed = ("workload", "submission_path", "experiment_dir", "experiment_name")
    if lacking := [name for name in needed if getattr(FLAGS, name) is None]:
        raise command_line.missing(lacking)
    frameworks.check(FLAGS.framework)
    workloads.module_of(FLAGS.workload, FLAGS.framework)
    submission.check_path(FLAGS.submission_path)
    space, count = FLAGS.tuning_search_space, FLAGS.num_tuning_trials
    trials = search.trials(FLAGS.tuning_ruleset, space, count, FLAGS.rng_seed or 0)
    search.check_some(trials, FLAGS.hparam_start_index, FLAGS.hparam_end_index)
    return trials


def _run(framework: frameworks.Framework, trials: list[Any]) -> None:
    workload = workloads.make(FLAGS.workload, FLAGS.framework)
    module = submission.load(FLAGS.submission_path, FLAGS.framework)
    submission.check_trials(module, trials, workload.step_hint)
    workload.open(FLAGS.data_dir)  # before anything is written
    names = (FLAGS.experiment_dir, FLAGS.experiment_name, FLAGS.workload, FLAGS.framework)
    with framework.first():
        follows = framework.rank > 0  # rank 0, which has made it
        experiment = experiment_folder(*names, FLAGS.overwrite and not follows, FLAGS.resume_last_run or follows)
    if FLAGS.micro_batch_size is not None:
        if not hasattr(workload, "micro_batch_size"):
            raise UsageError(f"--micro_batch_size={FLAGS.micro_batch_size}: {FLAGS.workload} takes its batches whole")
        workload.micro_batch_size = FLAGS.micro_batch_size
    settings = Settings(
        workload_name=FLAGS.workload,
        submission_path=FLAGS.submission_path,
        rng_seed=framework.agree(
            FLAGS.rng_seed if FLAGS.rng_seed is not None else int.from_bytes(os.urandom(3), "little")
        ),
        batch_size=submission.batch_size(module, FLAGS.workload, workload),
        framework=FLAGS.framework,
        data_dir=FLAGS.data_dir,
        max_global_steps=FLAGS.max_global_steps,
        eval_every_n_steps=FLAGS.eval_every_n_steps or getattr(workload, "eval_every_n_steps", None),
        continue_after_target=FLAGS.continue_after_target,
        save_checkpoints=FLAGS.save_checkpoints,
        save_intermediate_checkpoints=FLAGS.save_intermediate_checkpoints,
        tuning_ruleset=FLAGS.tuning_ruleset,
        save_snapshots_every_n_steps=FLAGS.save_snapshots_every_n_steps,
        checkpoint_every_n_steps=FLAGS.checkpoint_every_n_steps or getattr(workload, "checkpoint_every_n_steps", None),
        torch_compile=bool(FLAGS.torch_compile),
    )
    chosen = list(enumerate(trials, start=1))[FLAGS.hparam_start_index : FLAGS.hparam_end_index]
    for number, hyperparameters in chosen:
        if hyperparameters is not None:
            check_hyperparameters(experiment / f"trial_{number}", hyperparameters)
    told = []
    for number, hyperparameters in chosen:
        folder = experiment / f"trial_{number}"
        with storage_errors(folder):
            with framework.first():
                folder.mkdir(exist_ok=True)
                if hyperparameters is not None:
                    write_hyperparameters(folder, hyperparameters)
            if framework.rank == 0:
                print(f"{folder}: {FLAGS.submission_path}, seed {settings.rng_seed}", flush=True)
            evaluations = train_once(workload, module, hyperparameters, settings, folder, FLAGS.flag_values_dict())
            told.append(f"{folder}: {summary(workload, evaluations)}")
    if framework.rank == 0:
        print(*told, f"next: python -m scripts.report --runs={FLAGS.experiment_dir}", sep="\n", flush=True)


def main(argv: Sequence[str]) -> None:
    absl_logging.set_verbosity(absl_logging.WARNING)
    first = os.environ.get("RANK", "0") == "0"  # the others would say the same
    logging.getLogger("weight_averaging").setLevel(logging.INFO if first else logging.ERROR)
    try:
        if len(argv) > 1:
            raise UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        run()
    except (UsageError, MemoryError) as error:  # the last: a window that does not fit
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as end:
        if not first:
            sys.exit(status_of(end))
        again = "" if FLAGS.resume_last_run else " with --resume_last_run"
        where = "goes on from the last checkpoint" if FLAGS.save_checkpoints else "starts anew"
        command_line.stopped(f"the same command{again} {where}", end)


def end_at_signals() -> None:
    """Ctrl-C and SIGTERM from now on: one line, and what was begun is cleaned up.

    A rank of several ends at SIGTERM as it is. Torchrun sends that to ranks that wait in a collective for one that is
    gone. No Python interrupts that.
    """
    raise_again()
    if "WORLD_SIZE" not in os.environ:
        terminate_alike()


if __name__ == "__main__":
    end_at_signals()
    app.run(main, flags_parser=command_line.parsed)
