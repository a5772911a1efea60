"""what is in a folder of checkpoints, and which averages of it are possible

Prints the form of the checkpoints, their steps, and the sizes and types of the weights. It names what is left out and
why, what would not be averaged, and how long windows can be at which intervals. The weights themselves are not read.
"""

import argparse
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from weight_averaging.cli.common import add_key, add_reading, add_step_from, keys_of, listed, opened
from weight_averaging.placement import size
from weight_averaging.words import counted

if TYPE_CHECKING:
    from weight_averaging.offline import Snapshots

EXAMPLES = """\
for example:
  weight-averaging inspect runs/mine
  weight-averaging inspect output/checkpoint-500 output/checkpoint-1000
  weight-averaging inspect recovery-3-400.pth.tar --allow-class argparse.Namespace
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths", metavar="PATH", type=Path, nargs="+", help="a folder of checkpoints, or the checkpoints"
    )
    add_reading(parser)
    add_key(parser)
    add_step_from(parser)


def run(args: argparse.Namespace) -> None:
    snapshots = opened(args.paths, args.allow_class, args.step_from, args.key)
    unit, steps = snapshots.unit, snapshots.steps
    spacing = {later - earlier for earlier, later in pairwise(steps)}
    apart = f", {spacing.pop()} apart" if len(spacing) == 1 else ", not equally far apart" if spacing else ""
    print(f"checkpoints: {len(steps)}, {unit}{'s' if len(steps) > 1 else ''} {listed(steps)}{apart}")
    print(f"{unit}s are from {snapshots.rule}")
    print(f"form: {snapshots.form}")
    for line in (*_weights(snapshots), *_averages(snapshots), *_metrics(snapshots)):
        print(line)
    where = " ".join(map(str, args.paths))
    out = "average" if snapshots.form.startswith("Hugging Face") else "average.safetensors"
    print(f"next: weight-averaging average {where} --lawa window={min(len(steps), 20)} --out {out}")


def _weights(snapshots: "Snapshots") -> list[str]:
    from weight_averaging.offline import latest_of
    from weight_averaging.offline.forms.torch_file import TorchSource

    counts: dict[str, list[int]] = {}
    for shape, dtype in snapshots.layout.values():
        counts.setdefault(str(dtype).removeprefix("torch."), []).append(math.prod(shape))
    types = [f"{kind} {sum(sizes):,} ({len(sizes)})" for kind, sizes in counts.items()]
    lines = [f"weights: {size(snapshots.nbytes)} each; elements by type (tensors): {', '.join(types)}"]
    try:
        if latest := sorted(latest_of(snapshots.layout, known=snapshots.latest)):
            shown = ", ".join(latest[:5]) + (", ..." if len(latest) > 5 else "")
            lines.append(f"not averaged, taken from the latest: {counted(len(latest), 'tensor')}, {shown}")
    except ValueError as error:
        lines.append(f"not possible as they are: {error}")
    if snapshots.others:
        lines.append(f"other models in them: {keys_of(snapshots.others)}")
    source = snapshots.open(snapshots.steps[-1])
    if isinstance(source, TorchSource) and source.averagers:
        kinds = ", ".join(source.averagers)
        found = f"an averager's state is in the latest ({kinds})"
        lines.append(f"{found}: weight-averaging extract {source.path} --out average.safetensors")
    return lines


def _averages(snapshots: "Snapshots") -> list[str]:
    steps, unit = snapshots.steps, snapshots.unit
    lines = [f"averages as of {unit} {steps[-1]}: --lawa window=1 to {len(steps)}, --ema, --power of all {len(steps)}"]
    lines += [f"  interval={interval}: window 1 to {longest}" for interval, longest in _intervals(steps)]
    share = 1 - (steps[-2] / steps[-1] if len(steps) > 1 else 0)
    lines.append(f"  --tail, --merge: share above {share:.2g} for two {unit}s or more" if len(steps) > 1 else "")
    return [line for line in lines if line]


def _metrics(snapshots: "Snapshots") -> list[str]:
    from weight_averaging.offline.reading.best import metrics

    found = metrics(snapshots)
    shown = [f"{name} ({low:.4g} to {high:.4g})" for name, (low, high) in list(found.items())[:8]]
    return [f"  --best N --metric: {', '.join(shown)}{', ...' if len(found) > 8 else ''}"] if found else []


def _intervals(steps: Sequence[int]) -> list[tuple[int, int]]:
    """(interval, longest window as of the last step) of up to six intervals: multiples of what all steps share."""
    unit, there, last = math.gcd(*steps), set(steps), steps[-1]
    found = []
    for interval in range(unit, last + 1, unit):
        count, wanted = 0, last // interval * interval
        while wanted in there:
            count, wanted = count + 1, wanted - interval
        if count > 1:
            found.append((interval, count))
        if len(found) == 6:
            break
    return found
