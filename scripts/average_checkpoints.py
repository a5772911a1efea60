r"""Average the checkpoints of a run, after the run.

    python -m scripts.average_checkpoints DIR --lawa window=20 --out model.safetensors

DIR holds one snapshot per step: checkpoint_STEP files of the AlgoPerf harness or of miniperf, .pt, .pth or .safetensors
files with the step in their names, or folders of torch.distributed.checkpoint. Nothing in them can run code.

What to average (each flag may be given several times; values with colons between are multiplied out):

    --lawa window=20               the plain mean of the last 20 snapshots
    --lawa window=5:20,interval=64:128    four of them; an interval is in updates: snapshots at its multiples
    --ema decay=.95                ema <- .95 ema + .05 snapshot, from the first snapshot on
    --tail share=.25               the mean over the last quarter of training
    --power gamma=6.94             the power-function EMA of EDM2, whose length grows with training

The average is that of the last step, or of each step of --at. One goes to the file --out (.safetensors or .pt); of
several, each goes to a file in the folder --out. Every snapshot is read once. With more tensors than --memory_gb holds,
a model goes through in groups of tensors, so it may be larger than memory.

With a workload, the averages are evaluated and get log folders that scripts.report reads:

    python -m scripts.average_checkpoints runs/nadamw/study_0/mini_criteo1tb_pytorch/trial_1 --workload=mini_criteo1tb \
      --lawa window=5:10:20,interval=16 --experiment_dir=runs

By default at the steps at which the run itself was evaluated, where the average is ready. Called again, it goes on
where it was stopped. Instead of --lawa and --ema, a submission's search space may say what to average:

    python -m scripts.average_checkpoints runs/nadamw/study_0/mini_criteo1tb_pytorch/trial_1 --workload=mini_criteo1tb \
      --submission=lawa --tuning_search_space=tuning_search_spaces/miniperf/lawa.json --trials=1 --experiment_dir=runs

writes what runs/lawa/study_0/mini_criteo1tb_pytorch/trial_1 would have held, had lawa been trained. scripts.suite does
so for studies that say `offline: true`.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from weight_averaging.averages import EMA, LAWA, Average, Power, SnapshotError, Tail
from weight_averaging.offline import Plan, latest_of
from weight_averaging.offline.reading import Snapshots
from weight_averaging.offline.recording import verify
from weight_averaging.offline.writing import average_to_files, groups, memory

KINDS: dict[str, tuple[type[Average], str]] = {
    "lawa": (LAWA, "window"), "ema": (EMA, "decay"), "tail": (Tail, "share"), "power": (Power, "gamma"),
}  # fmt: skip
WHOLE = ("window", "interval", "start")
SUBMISSIONS = ("lawa", "ema")  # submissions whose runs are those of nadamw but for the average


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m scripts.average_checkpoints", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("dir", metavar="DIR", help="folder of snapshots")
    for kind, (_, setting) in KINDS.items():
        settings = f"{setting}=...,interval=...,start=..."
        made.add_argument(f"--{kind}", action="append", default=[], metavar=settings)
    made.add_argument("--at", help="steps as of which to average, with commas between; default: the last")
    made.add_argument("--out", type=Path, help="file (.safetensors, .pt) or, for several averages, folder to write")
    made.add_argument("--float32", action="store_true", help="write float32 also where the snapshots have fewer bits")
    made.add_argument(
        "--exclude", action="append", metavar="NAME", help="tensor, module or pattern to take from the latest snapshot"
    )
    made.add_argument(
        "--include",
        action="append",
        metavar="NAME",
        help="to average though frozen, a mask, of spectral norm or the like",
    )
    made.add_argument(
        "--verify", action="store_true", help="compare the files with the checksums in manifest.json first"
    )
    made.add_argument("--memory_gb", type=float, default=4.0, help="memory to stay within (default: 4)")
    made.add_argument("--workload", help="evaluate on this miniature workload instead of writing weights")
    made.add_argument("--experiment_dir", type=Path, default=Path("runs"), help="root of the logs (default: runs)")
    made.add_argument(
        "--experiment_name", default="offline", help="submissions are named <experiment_name>_<kind> (default: offline)"
    )
    made.add_argument("--validation_only", action="store_true", help="evaluate on the validation set alone")
    made.add_argument("--submission", choices=SUBMISSIONS, help="average as this submission does")
    made.add_argument("--tuning_search_space", help="its search space: a list of points")
    made.add_argument("--trials", default="1", help="points of it, from 1, with commas between (default: 1)")
    return made


def parse(kind: str, text: str) -> list[Average]:
    """The averages that a flag asks for. SnapshotError if it cannot be understood."""
    make, setting = KINDS[kind]
    given: dict[str, list[float]] = {}
    for field in text.split(","):
        name, _, values = field.partition("=")
        if name not in (setting, "interval", "start") or not values:
            raise SnapshotError(f"--{kind} {text}: expected {setting}=..., interval=..., start=..., not {field!r}")
        try:
            given[name] = [int(value) if name in WHOLE else float(value) for value in values.split(":")]
        except ValueError:
            raise SnapshotError(f"--{kind} {text}: {values!r} is no number, or not a whole one for {name}") from None
    if setting not in given:
        raise SnapshotError(f"--{kind} {text}: {setting}=... is missing")
    made: Any = make
    try:
        return [made(**dict(zip(given, values))) for values in itertools.product(*given.values())]
    except ValueError as error:
        raise SnapshotError(f"--{kind} {text}: {error}") from None


def run(args: argparse.Namespace) -> None:
    averages = [average for kind in KINDS for text in getattr(args, kind) for average in parse(kind, text)]
    if not averages and args.submission is None:
        raise SnapshotError(
            "say what to average: --lawa window=20, --ema decay=.95, --tail share=.25, --power gamma=6.94"
        )
    if args.submission is not None and (averages or not args.workload or not args.tuning_search_space):
        raise SnapshotError("--submission goes with --workload and --tuning_search_space, and without --lawa, --ema")
    steps = None if args.at is None else sorted(set(_numbers("--at", "steps", args.at)))
    torch.set_num_threads(1)
    snapshots = Snapshots(args.dir)
    if args.verify:
        verify(snapshots.folder)
    count = len(snapshots.steps)
    print(
        f"{args.dir}: {count} snapshots, steps {snapshots.steps[0]} to {snapshots.steps[-1]}, "
        f"{_bytes(snapshots.nbytes)} each"
    )
    if args.workload is not None:
        evaluate(args, snapshots, averages, steps)
    else:
        write(args, snapshots, averages, steps or [snapshots.steps[-1]])


def _latest(args: argparse.Namespace, snapshots: Snapshots) -> set[str]:
    """What is not averaged, and told."""
    latest = latest_of(snapshots.layout, args.include, args.exclude, snapshots.latest)
    if latest:
        shown = ", ".join(sorted(latest)[:5]) + (", ..." if len(latest) > 5 else "")
        print(f"not averaged but taken from the latest snapshot ({len(latest)} tensors): {shown}")
    return latest


def _numbers(flag: str, what: str, text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise SnapshotError(f"{flag}={text} must be {what} with commas between") from None


def write(args: argparse.Namespace, snapshots: Snapshots, averages: list[Average], steps: list[int]) -> None:
    if args.out is None:
        raise SnapshotError("say where to write: --out model.safetensors")
    out: Path = args.out
    wanted = [(average, step) for average in dict.fromkeys(averages) for step in steps]
    plan = Plan(wanted, snapshots.steps, float32=args.float32, latest=_latest(args, snapshots))
    if len(wanted) == 1:
        outputs = {wanted[0]: out}
        out.parent.mkdir(parents=True, exist_ok=True)
    elif out.suffix:
        raise SnapshotError(f"--out={out} is one file for {len(wanted)} averages: name a folder")
    else:
        out.mkdir(parents=True, exist_ok=True)
        outputs = {
            (average, step): out / f"{str(average).replace(' ', '_').replace('=', '')}_step_{step}.safetensors"
            for average, step in wanted
        }
    budget = int(args.memory_gb * 1e9)
    parts = groups(snapshots.layout, plan.peak, budget)
    total = snapshots.nbytes * len(plan.needed)
    count = f"{len(wanted)} averages" if len(wanted) > 1 else "1 average"
    print(
        f"{count} from {len(plan.needed)} snapshots, {_bytes(total)} to read; memory "
        f"{_bytes(memory(snapshots.layout, plan.peak, parts))}: {plan.peak} float32 copies and a snapshot"
        + (f", of {len(parts)} groups of tensors in turn" if len(parts) > 1 else "")
    )
    with tqdm(total=total, unit="B", unit_scale=True, disable=None) as bar:
        average_to_files(snapshots, plan, outputs, budget, bar.update)
    for path in outputs.values():
        print(path)


def evaluate(args: argparse.Namespace, snapshots: Snapshots, averages: list[Average], steps: list[int] | None) -> None:
    from miniperf import averaged_logs, workloads  # plain use needs no workload's packages

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
    for average in dict.fromkeys(averages):
        counts[type(average)] = counts.get(type(average), 0) + 1
        submission = f"{args.experiment_name}_{type(average).__name__.lower()}"
        settings = {f"averaging_{name}": value for name, value in vars(average).items() if value not in (None, False)}
        points.append(
            averaged_logs.Point(
                average,
                steps or averaged_logs.possible_steps(average, snapshots, source.steps),
                args.experiment_dir / submission / where / f"trial_{counts[type(average)]}",
                {**source.hyperparameters, **settings},
            )
        )
    latest = _latest(args, snapshots)
    averaged_logs.evaluate(workload, args.workload, snapshots, source, points, args.validation_only, latest)


def _trials(
    args: argparse.Namespace, step_hint: int, trained: dict[str, Any]
) -> list[tuple[int, Average, dict[str, Any]]]:
    """(trial, average, hyperparameters) of the points of the search space that are asked for.

    Raises:
        SnapshotError: there is no such point, or it is not what the run was `trained` with.
    """
    from miniperf import search

    space = search.load(args.tuning_search_space, None)
    chosen = _numbers("--trials", "numbers", args.trials)
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


def average_of(submission: str, hyperparameters: Any, step_hint: int) -> Average:
    """What `submission`, lawa or ema, evaluates with these hyperparameters."""
    from submissions.recipe.averaging import ema, lawa

    if submission == "lawa":
        settings = lawa.settings(hyperparameters, step_hint)
        return LAWA(window=settings["window"], interval=settings["interval"])
    settings = ema.settings(hyperparameters, step_hint)
    return EMA(decay=settings["decay"], interval=settings["interval"])


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def main(argv: Sequence[str] | None = None) -> None:
    try:
        run(parser().parse_args(argv))
    except (ValueError, OSError) as error:  # SnapshotError and UsageError among them
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
