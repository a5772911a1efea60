"""Run one submission on one workload, all trials of its search space.

    python -m scripts.run --submission=lawa --workload=mini_criteo1tb

A submission of this repository is named by --submission, which sets its path and search space; any other by the
official --submission_path and --tuning_search_space. All flags of the official runner work. All points of a list are
run unless --num_tuning_trials says fewer, and training stops at the workload's step_hint unless --max_global_steps
says otherwise.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from miniperf import submission_runner, workloads
from miniperf.errors import UsageError

FLAGS = flags.FLAGS

flags.DEFINE_string("submission", None, "A folder of submissions/pytorch: nadamw, lawa, ema, ...")
SUBMISSIONS = Path("submissions/pytorch")


def set_defaults() -> None:
    """Fill in the flags that were not given."""
    if FLAGS.submission is not None:
        known = sorted(path.parent.name for path in SUBMISSIONS.glob("*/submission.py"))
        if FLAGS.submission not in known:
            raise UsageError(f"--submission={FLAGS.submission} is unknown; choose from {', '.join(known)}")
        _default("submission_path", f"{SUBMISSIONS}/{FLAGS.submission}/submission.py")
        _default("tuning_search_space", f"tuning_search_spaces/miniperf/{FLAGS.submission}.json")
        _default("rng_seed", 0)
        _default("experiment_name", f"{FLAGS.submission}/study_{FLAGS.rng_seed}")
    _default("experiment_dir", "runs")
    if not FLAGS["num_tuning_trials"].present:
        FLAGS.num_tuning_trials = None
    if FLAGS.workload is not None:
        _default("max_global_steps", workloads.make(FLAGS.workload).step_hint)


def _default(name: str, value: object) -> None:
    if getattr(FLAGS, name) is None:
        setattr(FLAGS, name, value)


def main(argv: Sequence[str]) -> None:
    try:
        set_defaults()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    submission_runner.main(argv)


if __name__ == "__main__":
    app.run(main)
