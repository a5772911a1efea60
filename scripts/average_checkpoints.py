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
where it was stopped.
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
from weight_averaging.offline import Plan
from weight_averaging.offline_files import average_to_files, groups, memory
from weight_averaging.snapshot_files import Snapshots
from weight_averaging.snapshots import verify

KINDS: dict[str, tuple[type[Average], str]] = {
    "lawa": (LAWA, "window"), "ema": (EMA, "decay"), "tail": (Tail, "share"), "power": (Power, "gamma"),
}  # fmt: skip
WHOLE = ("window", "interval", "start")


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
        "--verify", action="store_true", help="compare the files with the checksums in manifest.json first"
    )
    made.add_argument("--memory_gb", type=float, default=4.0, help="memory to stay within (default: 4)")
    made.add_argument("--workload", help="evaluate on this miniature workload instead of writing weights")
    made.add_argument("--experiment_dir", type=Path, default=Path("runs"), help="root of the logs (default: runs)")
    made.add_argument(
        "--experiment_name", default="offline", help="submissions are named <experiment_name>_<kind> (default: offline)"
    )
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
    if not averages:
        raise SnapshotError(
            "say what to average: --lawa window=20, --ema decay=.95, --tail share=.25, --power gamma=6.94"
        )
    try:
        steps = None if args.at is None else sorted({int(step) for step in args.at.split(",")})
    except ValueError:
        raise SnapshotError(f"--at={args.at} must be steps with commas between") from None
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


def write(args: argparse.Namespace, snapshots: Snapshots, averages: list[Average], steps: list[int]) -> None:
    if args.out is None:
        raise SnapshotError("say where to write: --out model.safetensors")
    out: Path = args.out
    wanted = [(average, step) for average in dict.fromkeys(averages) for step in steps]
    plan = Plan(wanted, snapshots.steps, float32=args.float32)
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
    chosen = [
        (average, steps or averaged_logs.possible_steps(average, snapshots, source.steps))
        for average in dict.fromkeys(averages)
    ]
    experiment = args.experiment_dir / args.experiment_name
    averaged_logs.evaluate(workload, args.workload, snapshots, source, chosen, experiment)


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
