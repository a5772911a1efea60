r"""Average the checkpoints of a run, and evaluate the averages on its workload.

    python -m scripts.run --submission=nadamw --workload=mini_criteo1tb --save_snapshots_every_n_steps=16
    python -m scripts.average_checkpoints runs/nadamw/study_0/mini_criteo1tb_pytorch/trial_1/snapshots \
      --workload=mini_criteo1tb --lawa window=5:10:20,interval=16 --experiment_dir=runs

The first trains with snapshots. The second averages them and writes log folders that scripts.report reads. By default
averages are evaluated at the steps at which the run itself was, where they are ready. Called again, it continues where
it was stopped. Instead of --lawa and --ema, a submission's search space may say what to average:

    python -m scripts.average_checkpoints runs/nadamw/study_0/mini_criteo1tb_pytorch/trial_1/snapshots \
      --workload=mini_criteo1tb --submission=lawa \
      --tuning_search_space=tuning_search_spaces/miniperf/lawa.json --trials=1 --experiment_dir=runs

This writes what runs/lawa/study_0/mini_criteo1tb_pytorch/trial_1 would have held, had lawa been trained. scripts.suite
does so for studies that say `offline: true`.

Without --workload this is the command `weight-averaging average`, whose flags mean the same here:

"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weight_averaging import interrupts
from weight_averaging.averages import Average, SnapshotError
from weight_averaging.cli import average as command
from weight_averaging.cli.common import listed, not_averaged
from weight_averaging.cli.descriptions import averages_of

if TYPE_CHECKING:
    from weight_averaging.offline import Snapshots

# Whose runs are those of another submission but for the average.
SUBMISSIONS = (
    "lawa", "ema", "adamw_lawa", "adamw_ema", "ademamix_lawa", "ademamix_ema", "soap_lawa", "soap_ema",
    "shampoo_lawa", "shampoo_ema",
    "lawa_no_decay", "ema_no_decay", "merge_no_decay", "lawa_wsd", "ema_wsd", "ema_growing", "ema_growing_no_decay",
    "ema_growing_inverse_sqrt", "adamw_ema_growing", "soap_ema_growing", "muon_lawa", "muon_ema_growing",
)  # fmt: skip


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m scripts.average_checkpoints",
        description=(__doc__ or "") + command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(made)
    made.add_argument("--workload", help="evaluate on this miniature workload instead of writing weights")
    made.add_argument(
        "--experiment_dir", type=Path, default=Path("runs"), help="root folder of the logs (default: runs)"
    )
    made.add_argument(
        "--experiment_name", default="offline", help="submissions are named <experiment_name>_<kind> (default: offline)"
    )
    made.add_argument("--validation_only", action="store_true", help="evaluate on the validation set alone")
    made.add_argument("--submission", choices=SUBMISSIONS, help="submission whose way of averaging is used")
    made.add_argument("--tuning_search_space", help="file of its search space, a list of points (JSON)")
    made.add_argument("--trials", default="1", help="numbers of its points, from 1, with commas between (default: 1)")
    return made


def run(args: argparse.Namespace) -> None:
    averages = averages_of(args)
    if args.submission is not None and (averages or not args.workload or not args.tuning_search_space):
        raise SnapshotError("--submission goes with --workload and --tuning_search_space, and without --lawa, --ema")
    for flag in ("best", "recompute_batch_norm"):
        if args.workload is not None and getattr(args, flag) is not None:
            raise SnapshotError(f"--{flag.replace('_', '-')} writes a file, and does not go with --workload")
    if averages or args.submission:
        with interrupts.importing():
            import torch  # a second, which a wrong flag need not wait for

            import_module("weight_averaging.offline")
        torch.set_num_threads(1)
    if args.workload is None or not (averages or args.submission):
        command.run(args)  # which says what is missing
        return
    snapshots = command.told(args)
    evaluate(args, snapshots, averages, command.steps_of(args, snapshots))


def evaluate(
    args: argparse.Namespace, snapshots: "Snapshots", averages: list[Average], steps: list[int] | None
) -> None:
    from miniperf import averaged_logs, workloads  # plain use needs no workload's packages
    from miniperf.logs import evaluations_of
    from miniperf.progress import summary

    source = averaged_logs.Source(snapshots.folder)
    workload = workloads.make(args.workload)
    where = f"study_{source.study}/{args.workload}_pytorch"
    points = []
    if args.submission is not None:
        for trial, average, hyperparameters in _trials(args, workload.step_hint, source.hyperparameters):
            folder = args.experiment_dir / args.submission / where / f"trial_{trial}"
            try:
                ready = averaged_logs.possible_steps(average, snapshots, steps or source.steps)
            except SnapshotError as error:
                print(f"left out: {error}")  # its window is longer than the run, say
            else:
                points.append(averaged_logs.Point(average, ready, folder, hyperparameters))
    counts: dict[type[Average], int] = {}
    for average in averages:
        counts[type(average)] = counts.get(type(average), 0) + 1
        submission = f"{args.experiment_name}_{type(average).__name__.lower()}"
        given = {name: value for name, value in vars(average).items() if value not in (None, False)}
        settings = {  # as they are read again
            f"averaging_{name}": list(value) if isinstance(value, tuple) else value for name, value in given.items()
        }
        points.append(
            averaged_logs.Point(
                average,
                steps or averaged_logs.possible_steps(average, snapshots, source.steps),
                args.experiment_dir / submission / where / f"trial_{counts[type(average)]}",
                {**source.hyperparameters, **settings},
                "give another --experiment_name",
            )
        )
    latest = not_averaged(args, snapshots)
    averaged_logs.evaluate(workload, args.workload, snapshots, source, points, args.validation_only, latest)
    for point in points:
        print(f"{point.folder}: {point.average}, evaluated at {snapshots.unit}s {listed(point.steps)}")
        print(f"  {summary(workload, evaluations_of(point.folder))}")
    print(f"next: python -m scripts.report --runs={args.experiment_dir}")


def _trials(
    args: argparse.Namespace, step_hint: int, trained: dict[str, Any]
) -> list[tuple[int, Average, dict[str, Any]]]:
    """(trial, average, hyperparameters) of the points of the search space that are asked for.

    Raises:
        SnapshotError: there is no such point, or it is not what the run was `trained` with.
    """
    from miniperf import search
    from submissions.recipe.offline import average_of

    space = search.load(args.tuning_search_space, None)
    chosen = command.numbers("--trials", "numbers", args.trials)
    if bad := [number for number in chosen if not 1 <= number <= len(space)]:
        raise SnapshotError(f"--trials: {args.tuning_search_space} has points 1 to {len(space)}, and no {bad[0]}")
    found: list[tuple[int, Average, dict[str, Any]]] = []
    for number in chosen:
        point = space[number - 1]
        values = {name: value for name, value in point._asdict().items() if not name.startswith("averaging_")}
        if differing := sorted({name for name in {*values, *trained} if values.get(name) != trained.get(name)}):
            raise SnapshotError(
                f"--trials: point {number} of {args.tuning_search_space} has {differing[0]} "
                f"{values.get(differing[0])}, the run {trained.get(differing[0])}: its average is another run's"
            )
        average = average_of(args.submission, point, step_hint)
        found.append((number, average, point._asdict()))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    try:
        run(args)
    except (ValueError, OSError) as error:  # SnapshotError and UsageError among them
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as end:
        goes_on = "goes on from there" if args.workload else "starts anew"
        print(f"\nstopped: the same command {goes_on}", file=sys.stderr)
        sys.exit(interrupts.status_of(end))


if __name__ == "__main__":
    interrupts.raise_again()
    interrupts.terminate_alike()
    main()
