"""The flags for the mean of the best checkpoints by a metric."""

import argparse
from typing import TYPE_CHECKING

from weight_averaging.averages import Average, SnapshotError

if TYPE_CHECKING:
    from weight_averaging.offline import Snapshots


def add_best(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--best", type=int, metavar="N", help="the plain mean of the N best checkpoints by --metric")
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="a number in the checkpoints (dots lead further in) or in their names: val_loss",
    )
    parser.add_argument(
        "--mode", choices=("min", "max"), help="whether lower or higher values are better, where that is not known"
    )


def check_best(args: argparse.Namespace, others: bool) -> None:
    """SnapshotError if the flags do not go together.

    Args:
        others: whether other averages are asked for.
    """
    if args.best is None:
        if given := next((flag for flag in ("metric", "mode") if getattr(args, flag) is not None), None):
            raise SnapshotError(f"--{given} goes with --best N, the number of the best checkpoints")
        return
    if others or args.at is not None:
        raise SnapshotError("--best is an average of its own, over all steps: leave out --at and the other averages")
    if args.best < 1:
        raise SnapshotError(f"--best={args.best} must be a number of checkpoints > 0")
    if args.metric is None:
        raise SnapshotError(
            "--best needs a metric: --metric val_loss; `weight-averaging inspect` lists those there are"
        )


def chosen(args: argparse.Namespace, snapshots: "Snapshots") -> tuple["Snapshots", list[tuple[Average, int]]]:
    """The best snapshots, which are told with their values, and the average of them that is wanted."""
    from weight_averaging.offline import best

    found = best(snapshots, args.best, args.metric, args.mode)
    print(found.rule)
    values = [f"{step} ({value:.6g})" for step, value in found.values.items()]
    shown = values if len(values) <= 12 else [*values[:11], "...", values[-1]]
    unit = snapshots.unit + "s" * (args.best > 1)
    print(f"the best {args.best} of {len(snapshots.steps)}: {unit} {', '.join(shown)}")
    return found.snapshots, [(found.average, found.steps[-1])]
