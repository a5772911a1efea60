"""averages of a run's checkpoints, as of its last step or of others

PATH is a folder of checkpoints, or the checkpoints. They may be state dicts and checkpoints of torch.save (.pt, .pth,
.ckpt of Lightning, .pth.tar of timm, fairseq, ESPnet) or .safetensors. They may be Hugging Face checkpoint-STEP
folders, folders of torch.distributed.checkpoint, or checkpoint_STEP of AlgoPerf and Flax (.msgpack).

What to average; flags may be repeated, and values with colons between are multiplied out:

  --lawa window=20               the plain mean of the last 20 checkpoints
  --lawa window=5:20,interval=64:128    four of them; an interval is in steps: checkpoints at its multiples
  --ema decay=.95                ema <- .95 ema + .05 checkpoint, from the first on; warmup=true lets it begin short
  --tail share=.25               the mean over the last quarter of training
  --growing share=.15            an EMA over the latest 15 % of the updates so far, whose length grows with training
  --follows-rate share=.15       the same, shorter where the learning rate in the checkpoints' optimizer has fallen
  --power gamma=6.94             the same by the exponent of EDM2
  --merge shape=1-sqrt,share=.2  as if the learning rate had decayed over the last fifth (linear, cosine, 1-sqrt), or
                                 over the last 20 checkpoints: window=20
  --best 5 --metric val_loss     the plain mean of the five best by a metric that the checkpoints, or their names, have
  --average mine:Polynomial,eta=3       one of your own: class Polynomial of mine.py, which is run (docs/own_average.md)

Each checkpoint is read once. Where files can be mapped, all of them are read in turn for a piece of the model at a
time. Folders of torch.distributed.checkpoint and files from before torch 1.6 cannot be: there --memory-gb bounds a
piece.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from weight_averaging.averages import Average, FollowsRate, SnapshotError
from weight_averaging.cli.batch_norm import recomputing
from weight_averaging.cli.best import add_best, check_best, chosen
from weight_averaging.cli.common import (
    add_key,
    add_reading,
    add_step_from,
    add_writing,
    keys_of,
    listed,
    not_averaged,
    opened,
    parents_made,
    progress,
)
from weight_averaging.cli.descriptions import add_averages, averages_of
from weight_averaging.placement import size
from weight_averaging.words import counted

if TYPE_CHECKING:
    from weight_averaging.offline import Snapshots
    from weight_averaging.offline.layouts import Layout

EXAMPLES = """\
for example:
  weight-averaging average runs/mine --lawa window=20 --out average.safetensors
      the mean of the last 20 checkpoints of a folder
  weight-averaging average output/ --lawa window=5 --at 1000,2000 --out averages/
      of a Hugging Face Trainer's checkpoint-STEP folders; two folders that from_pretrained loads
  weight-averaging average epoch=*.ckpt --ema decay=.9 --out ema.ckpt --allow-class argparse.Namespace
      of the named Lightning checkpoints, one of the same form; a class in them is allowed by name
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths", metavar="PATH", type=Path, nargs="+", help="a folder of checkpoints, or the checkpoints"
    )
    add_averages(parser)
    add_best(parser)
    parser.add_argument("--at", help="steps as of which to average, with commas between (default: the last)")
    add_writing(parser)
    add_reading(parser)
    add_key(parser)
    add_step_from(parser)
    parser.add_argument("--verify", action="store_true", help="compare files with the checksums in manifest.json first")


def numbers(flag: str, what: str, text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise SnapshotError(f"{flag}={text} must be {what} with commas between") from None


def steps_of(args: argparse.Namespace, snapshots: "Snapshots") -> list[int] | None:
    """The steps of --at, ascending. SnapshotError if one is beyond the last snapshot."""
    if args.at is None:
        return None
    steps = sorted(set(numbers("--at", "steps", args.at)))
    if steps[-1] > (last := snapshots.steps[-1]):
        raise SnapshotError(f"--at {steps[-1]} is beyond the last snapshot, which is of {snapshots.unit} {last}")
    return steps


def told(args: argparse.Namespace) -> "Snapshots":
    """The snapshots that are asked for, verified if wanted; tells how many there are, and where steps are from."""
    from weight_averaging.offline.recording import verify

    snapshots = opened(args.paths, args.allow_class, args.step_from, args.key)
    if args.verify:
        verify(snapshots.folder)
    steps = snapshots.steps
    where = args.paths[0] if len(args.paths) == 1 else f"{args.paths[0]}, ..."
    print(
        f"{where}: {counted(len(steps), 'snapshot')}, {_steps(snapshots.unit, steps)}, "
        f"{size(snapshots.nbytes)} each; the latest is a {snapshots.form}"
    )
    print(f"{snapshots.unit}s are from {snapshots.rule}")
    return snapshots


def _steps(unit: str, steps: Sequence[int]) -> str:
    return f"{unit}s {steps[0]} to {steps[-1]}" if len(steps) > 1 else f"{unit} {steps[0]}"


def run(args: argparse.Namespace) -> None:
    averages = averages_of(args)
    check_best(args, others=bool(averages))
    if not averages and args.best is None:
        raise SnapshotError(
            "say what to average: --lawa window=20, --ema decay=.95, --tail share=.25, --power gamma=6.94, "
            "--merge shape=1-sqrt,share=.2, --best 5 --metric val_loss or --average mine:Polynomial,eta=3"
        )
    if args.out is None:
        raise SnapshotError("say where to write: --out model.safetensors")
    snapshots = told(args)
    if args.best is not None:
        write(args, *chosen(args, snapshots))
        return
    steps = steps_of(args, snapshots) or [snapshots.steps[-1]]
    write(args, snapshots, [(average, step) for average in averages for step in steps])


def write(
    args: argparse.Namespace,
    snapshots: "Snapshots",
    wanted: Sequence[tuple[Average, int]],
    title: str | None = None,
) -> None:
    """Write the wanted averages to `args.out`, and say where each is, what went in and how to load it.

    Args:
        title: what is written, where that is not an average along a run.
    """
    from weight_averaging.offline import Plan
    from weight_averaging.offline.layouts import nbytes
    from weight_averaging.offline.low_rank import check_low_rank
    from weight_averaging.offline.passes.pieces import memory, sums_of
    from weight_averaging.offline.writing.outputs import has_others, loading
    from weight_averaging.offline.writing.to_files import average_to_files, layout_for, parts_of

    recompute = recomputing(args.recompute_batch_norm)
    outputs = _outputs(args, snapshots, wanted)
    latest = snapshots.open(snapshots.steps[-1])
    layout = layout_for(snapshots, next(iter(outputs.values())), latest)
    follows = any(isinstance(average, FollowsRate) for average, _ in wanted)
    plan = Plan(
        wanted,
        snapshots.steps,
        float32=args.float32,
        latest=not_averaged(args, snapshots, layout),
        frozen=snapshots.frozen,
        learning_rates=snapshots.learning_rates if follows else None,
    )
    for line in check_low_rank(snapshots, wanted, layout, along_run=title is None):
        print(line)
    lost = latest.left_out(layout) if has_others(next(iter(outputs.values())), latest) else []
    for line in _beside(snapshots, layout, lost, recomputed=recompute is not None):
        print(line)
    budget = int(args.memory_gb * 1e9)
    parts = parts_of(snapshots, plan, layout, budget)
    total = nbytes(layout) * len(plan.needed)
    read, kind = counted(len(plan.needed), "snapshot"), sums_of(layout)
    copies = counted(plan.peak, f"{kind} copy", f"{kind} copies")
    print(
        f"{counted(len(wanted), 'average')} from {read}, {size(total)} to read; memory "
        f"{size(memory(layout, plan.peak, parts))}: {copies} and a snapshot"
        + (", beside whole averages and models for batch norm" if recompute is not None else "")
        + (f", of {len(parts)} pieces of the model in turn" if len(parts) > 1 else "")
    )
    said: list[str] = []
    with parents_made(outputs.values()), progress(total) as on_read:  # now that nothing else can be wrong
        average_to_files(
            snapshots, plan, outputs, budget, on_read, args.plain_names, args.overwrite, recompute, said.append
        )
        args.written()
    for line in said:
        print(line)
    for (average, step), path in outputs.items():
        members = average.members(snapshots.steps, step)
        which = f"{snapshots.unit}s {listed(members)}" if len(members) > 1 else f"{snapshots.unit} {members[0]}"
        made = f"made of {counted(len(members), 'snapshot')}, {which}"
        print(f"{path}: " + (title or f"{average} as of {snapshots.unit} {step}, {made}"))
    extra = list(getattr(latest, "extra", ()))
    if extra and any(not has_others(path, latest) for path in outputs.values()):
        left_out = counted(len(extra), "entry", "entries")
        print(f"left out of files that are a state dict of tensors alone: {left_out} of extra state, as {extra[0]}")
    names = snapshots.saved_names(latest)
    if not args.plain_names and any(name != saved for name, saved in names.items()):
        print(f"names are as saved ({next(iter(names.values()))}, ...): --plain-names drops what wrappers add")
    print(f"load: {loading(next(iter(outputs.values())), latest)}")


def _beside(snapshots: "Snapshots", layout: "Layout", lost: Sequence[str], recomputed: bool) -> list[str]:
    """What of the checkpoints is in the averages beside the model, and what is not."""
    lines = []
    if averaged := [name for name in layout if name not in snapshots.layout]:
        lines.append(f"averaged too, each on its own: {keys_of(averaged)}")
    if others := [name for name in snapshots.others if name not in layout]:
        lines.append(f"left out, since a state dict is of one model: {keys_of(others)}")
    if snapshots.lacking:
        lines.append(f"left out, since not all checkpoints have them alike: {', '.join(snapshots.lacking)}")
    if recomputed and any(name.endswith(".running_mean") for name in averaged):
        lines.append("batch-norm statistics are recomputed for the main model alone, and averaged in the others")
    if lost:
        lines.append(f"not in the average: {', '.join(lost)}")
    return lines


def _outputs(
    args: argparse.Namespace, snapshots: "Snapshots", wanted: Sequence[tuple[Average, int]]
) -> dict[tuple[Average, int], Path]:
    """Where each goes: one to `args.out`, several into it. SnapshotError if that cannot be written, or is there."""
    from weight_averaging.offline.forms.source import ending
    from weight_averaging.offline.writing.outputs import check_path, is_folder_for

    out: Path = args.out
    latest = snapshots.open(snapshots.steps[-1])
    found: dict[tuple[Average, int], Path] = {}
    if len(wanted) == 1:
        found[wanted[0]] = out
    else:
        if ending(out) and not is_folder_for(out, latest):
            raise SnapshotError(f"--out={out} is one file for {len(wanted)} averages: name a folder")
        suffix = "" if is_folder_for(out, latest) else ".safetensors"
        for average, step in wanted:
            name = f"{str(average).replace(' ', '_').replace('=', '')}_{snapshots.unit}_{step}{suffix}"
            found[average, step] = out / name.replace("/", "-")
    if len(set(found.values())) < len(found):  # of two classes of one name
        raise SnapshotError(f"--out={out}: two averages would have one name there: ask for them one at a time")
    for path in found.values():
        check_path(path, latest, args.overwrite)
    return found
