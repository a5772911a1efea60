r"""Run one submission on one workload, all trials of its search space.

    python -m scripts.run --submission=lawa --workload=mini_criteo1tb
    python -m scripts.run --submission=lawa --workload=mini_criteo1tb --framework=jax
    torchrun --standalone --nproc_per_node=8 -m scripts.run --submission=adamw_lawa --workload=finewebedu_lm_124m \
      --data_dir=~/data/fineweb_edu
    python -m scripts.run --harness=official --submission=lawa --workload=ogbg --data_dir=~/data
    python -m scripts.run --harness=official --engine=docker --submission=lawa --workload=ogbg --dry_run

A submission of this repository is named by --submission, which sets its path and search space, or --tuning_ruleset=self
where it has none. Any other is named by the official --submission_path and --tuning_search_space. All flags of the
official runner work. All points of a list are run unless --num_tuning_trials says fewer.

Somebody else's submission is evaluated at an average of its weights, with the usual settings, by one flag more:

    python -m scripts.run --submission_path=theirs/submission.py --tuning_search_space=theirs/space.json \
      --averaging=lawa --workload=mini_criteo1tb --experiment_name=theirs_lawa

What runs then is written below dist/averaged. Other settings, and a folder to hand in: scripts.average_submission.

Under miniperf training stops at the workload's step_hint unless --max_global_steps says otherwise. The last two
checkpoints of a run are kept. With --save_intermediate_checkpoints all are, as by the official runner and by
miniperf.submission_runner. Under the official harness --data_dir is the root with one folder a data set
(docs/docker.md), and everything is checked before the start.
"""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from launching import average_submission, disk_room, engines, official, own_submissions, submission_info
from launching.official_workloads import base_name
from miniperf import command_line, frameworks, search, submission_runner, workloads
from weight_averaging import interrupts
from weight_averaging.errors import UsageError

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "submission", None, "Name of a submission, a folder of submissions/<framework>: nadamw, lawa, ema, ..."
)
flags.DEFINE_enum(
    "harness",
    "miniperf",
    ["miniperf", "official"],
    "Runner that trains: miniperf, on one CPU, or the official harness, installed beside.",
)
flags.DEFINE_enum(
    "engine",
    "local",
    ["local", "docker", "slurm"],
    "Place where the official harness runs: this machine, its Docker image, or a job of Slurm.",
)
flags.DEFINE_string(
    "harness_path", None, "Folder with the sources of the official harness, to be used in place of the installed one."
)
flags.DEFINE_integer(
    "gpus", None, "Number of GPUs for the official harness; default: all there are. 0 trains on the CPU.", lower_bound=0
)
flags.DEFINE_enum(
    "averaging", None, sorted(average_submission.AVERAGES), "Average that evaluations of --submission_path see."
)
flags.DEFINE_string(
    "sbatch_args", "", "Further arguments for sbatch, with --engine=slurm: '--partition=gpu --time=24:00:00'."
)
flags.DEFINE_boolean(
    "dry_run", False, "Print the command of the official harness. Nothing is checked and nothing is started."
)
OFFICIAL = ("engine", "harness_path", "gpus", "sbatch_args", "dry_run")  # not of miniperf
# Of the runner, in --help here too.
for _name in (
    "data_dir", "eval_every_n_steps", "experiment_dir", "experiment_name", "framework", "max_global_steps",
    "num_tuning_trials", "overwrite", "resume_last_run", "rng_seed", "submission_path", "tuning_ruleset",
    "tuning_search_space", "workload",
):  # fmt: skip
    flags.declare_key_flag(_name)
ROOT = Path(__file__).resolve().parent.parent
AVERAGED = Path("dist/averaged")
MODULES = (__name__, submission_runner)  # whose flags a command has


def set_defaults() -> None:
    """Fill in the flags that were not given."""
    official_run = FLAGS.harness == "official"
    frameworks.check(FLAGS.framework)
    needed = ("submission", "workload") if FLAGS.submission_path is None else ("workload",)
    if lacking := [name for name in needed if getattr(FLAGS, name) is None]:
        raise command_line.missing(lacking)
    if FLAGS.submission is not None:
        _default("submission_path", str(own_submissions.path_of(FLAGS.submission, FLAGS.framework)))
        if FLAGS.tuning_ruleset == "external" and FLAGS.tuning_search_space is None:
            space = search.default_path(FLAGS.submission, str(FLAGS.workload), official_run)
            if space is not None:
                FLAGS.tuning_search_space = space
            elif not FLAGS["tuning_ruleset"].present:
                FLAGS.tuning_ruleset = "self"
    if FLAGS.averaging is not None:
        _average()
    # The official harness takes 0 for "draw one", another one on each rank.
    _default("rng_seed", 1 if official_run else 0)
    if FLAGS.submission is not None:
        _default("experiment_name", f"{FLAGS.submission}/study_{FLAGS.rng_seed}")
    _default("experiment_dir", "runs")
    if not FLAGS["num_tuning_trials"].present:
        FLAGS.num_tuning_trials = None
    if official_run:
        return
    if _is_official(FLAGS.workload):
        raise UsageError(
            f"--workload={FLAGS.workload} is one of the official harness: add --harness=official (docs/official.md)"
        )
    if not FLAGS["save_intermediate_checkpoints"].present:
        FLAGS.save_intermediate_checkpoints = False
    submission_runner.check_flags()
    if FLAGS.max_global_steps is None:  # a framework is imported for it
        _default("max_global_steps", workloads.make(FLAGS.workload, FLAGS.framework).step_hint)


def _average() -> None:
    """Put the averaged submission in the place of the one that was given."""
    if FLAGS.submission is not None:
        raise UsageError(
            f"--averaging is for --submission_path; of --submission={FLAGS.submission} see the variants in "
            "docs/submissions.md"
        )
    external = FLAGS.tuning_ruleset == "external"
    if FLAGS.submission_path is None or (external and FLAGS.tuning_search_space is None):
        return  # an error of its own, below
    base = average_submission.read(Path(FLAGS.submission_path), FLAGS.framework)
    if base.framework != FLAGS.framework:
        raise UsageError(f"--submission_path={FLAGS.submission_path} needs --framework={base.framework}")
    space = Path(FLAGS.tuning_search_space) if external else None
    folder = average_submission.write_to_run(ROOT, base, FLAGS.averaging, space, AVERAGED)
    FLAGS["averaging"].unparse()  # done: a Slurm job is handed what was written
    FLAGS.submission_path = str(folder / "submission.py")
    if space is not None:
        FLAGS.tuning_search_space = str(folder / submission_info.SPACE)


def _is_official(workload: str | None) -> bool:
    if workload is None or workload in {**workloads.WORKLOADS, **workloads.FULL_SIZE}:
        return False
    try:
        return bool(base_name(workload))
    except UsageError:
        return False


def _default(name: str, value: object) -> None:
    if getattr(FLAGS, name) is None:
        setattr(FLAGS, name, value)


def run_official() -> None:
    """Check, then hand over to the official runner, a container or Slurm. UsageError if that cannot work."""
    if FLAGS.experiment_name is None:
        raise command_line.missing(["experiment_name"])
    base_name(FLAGS.workload)
    official.check_seed(FLAGS.rng_seed)
    space = FLAGS.tuning_search_space
    trials = search.trials(FLAGS.tuning_ruleset, space, FLAGS.num_tuning_trials)
    _default("num_tuning_trials", len(trials))
    search.check_some(trials, FLAGS.hparam_start_index, FLAGS.hparam_end_index)
    official.check_trials(FLAGS.submission_path, space, trials, FLAGS.workload, FLAGS.framework)
    command, environment = _command()
    if FLAGS.dry_run:
        settings = [f"{name}={value}" for name, value in environment.items() if value != os.getcwd()]
        print(shlex.join([*settings, *command]))
        return
    sys.stdout.flush()
    os.execvpe(command[0], command, {**os.environ, **environment})


def _command() -> tuple[list[str], dict[str, str]]:
    """The command, checked unless in a dry run, and what it wants in its environment."""
    if FLAGS.engine == "docker":
        return _in_docker(), {}
    if FLAGS.engine == "slurm":
        return _on_slurm(), {}
    gpus = _gpus()
    if FLAGS.submission is not None:
        official.check_batch_size(FLAGS.workload, gpus)
    data_root = FLAGS.data_dir or "~/data"
    if not FLAGS.dry_run:
        note = official.check_harness(FLAGS.workload, _harness_path())
        official.check_data(FLAGS.workload, data_root, FLAGS.framework)
        official.check_image_lists(FLAGS.workload, data_root, FLAGS.framework, Path.cwd())
        trials = _trials()
        own = FLAGS.submission is not None
        disk_room.check(FLAGS.workload, FLAGS.experiment_dir, trials if FLAGS.save_checkpoints else {}, own)
        _check_experiment(trials)
        if note:
            print(f"note: {note}", file=sys.stderr)
    command = official.command(
        FLAGS.framework, FLAGS.workload, FLAGS.submission_path, gpus, data_root, FLAGS.experiment_dir,
        FLAGS.experiment_name,
        {name: getattr(FLAGS, name) for name in official.PASSED_ON if getattr(FLAGS, name) != FLAGS[name].default},
        FLAGS.torch_compile,
    )  # fmt: skip
    wanted = official.environment(FLAGS.framework, gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    sources = [os.getcwd(), *([str(_harness_path())] if FLAGS.harness_path else [])]
    return command, {"PYTHONPATH": os.pathsep.join(sources), **wanted}


def _harness_path() -> Path | None:
    return Path(FLAGS.harness_path).expanduser().absolute() if FLAGS.harness_path else None


def _gpus() -> int:
    if not FLAGS.dry_run:
        return official.gpus_found(FLAGS.gpus)
    import torch  # not to run a submission in JAX

    found = torch.cuda.device_count() if FLAGS.gpus is None else FLAGS.gpus
    if FLAGS.gpus is None and not found:
        print("no GPU found: the command is for one; --gpus=N gives that for N, 0 for the CPU", file=sys.stderr)
        return 1
    return found


def _trials() -> dict[Path, Any]:
    """The hyperparameters of the trials that are to run, by folder; None where the harness draws them anew."""
    name = f"{FLAGS.workload}_{FLAGS.framework}"
    folder = Path(FLAGS.experiment_dir).expanduser() / FLAGS.experiment_name / name
    first, last = FLAGS.hparam_start_index or 0, FLAGS.hparam_end_index or FLAGS.num_tuning_trials or 1
    trials = [folder / f"trial_{number + 1}" for number in range(first, last)]
    space = FLAGS.tuning_search_space
    if space is None or isinstance(json.loads(Path(space).read_text()), dict):
        return dict.fromkeys(trials)
    points = search.trials(FLAGS.tuning_ruleset, space, FLAGS.num_tuning_trials)
    return dict(zip(trials, points[first:], strict=False))


def _check_experiment(trials: dict[Path, Any]) -> None:
    if not FLAGS.resume_last_run:
        folder = next(iter(trials)).parent
        if folder.exists() and not FLAGS.overwrite:  # upstream would ask on stdin
            raise UsageError(f"{folder} exists: continue it with --resume_last_run, or replace it with --overwrite")
        return
    official.check_resumed(trials, FLAGS.max_global_steps)
    if FLAGS.framework == "jax":
        official.check_jax_checkpoints(trials)
        if Path(FLAGS.submission_path).parts[:2] != (own_submissions.ROOM.name, "jax"):
            print(official.RESTORED_IN_JAX, file=sys.stderr)
        return
    for path in official.remove_torn_checkpoints(trials):
        print(f"removed {path}: only in part written", file=sys.stderr)


def _in_docker() -> list[str]:
    if FLAGS.harness_path is not None:
        raise UsageError("--harness_path: an image has its own harness, chosen by the build argument HARNESS_COMMIT")
    if FLAGS.submission is None:
        raise UsageError("--engine=docker runs a submission of the image: name it by --submission")
    gpus = "all" if FLAGS.gpus is None else FLAGS.gpus
    settings = {"GPUS": gpus, "DATA_DIR": FLAGS.data_dir, "EXPERIMENT_DIR": FLAGS.experiment_dir}
    left_out = ("harness", "submission", "workload", "data_dir", "experiment_dir", "gpus", "sbatch_args")
    rest = engines.same_flags(FLAGS, MODULES, left_out)
    return engines.in_docker(FLAGS.workload, FLAGS.submission, rest, settings, FLAGS.dry_run)


def _on_slurm() -> list[str]:
    rest = [*engines.same_flags(FLAGS, MODULES, ("resume_last_run", "sbatch_args")), "--resume_last_run"]
    name = f"{FLAGS.workload}-{Path(FLAGS.submission_path).parent.name}-{FLAGS.rng_seed}"
    return engines.on_slurm("scripts.run", rest, name, FLAGS.gpus, FLAGS.sbatch_args, FLAGS.dry_run)


def main(argv: Sequence[str]) -> None:
    try:
        with interrupts.importing():  # of the workload, for its step_hint
            set_defaults()
        if FLAGS.harness == "official":
            if len(argv) > 1:
                raise UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
            run_official()
            return
        if given := [name for name in OFFICIAL if getattr(FLAGS, name) != FLAGS[name].default]:
            raise UsageError(f"--{', --'.join(given)}: for --harness=official alone")
    except KeyboardInterrupt as end:
        command_line.stopped("nothing was begun", end)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    submission_runner.main(argv)


if __name__ == "__main__":
    submission_runner.end_at_signals()
    app.run(main, flags_parser=command_line.parsed)
