"""where the averages of a training run could live, and what they would cost, on paper

Its rows are a LAWA and an EMA on the device, on the host, or made after training from snapshots on disk. Its columns
are the memory of a rank and of a node, and the bytes moved to the host or the disk at each snapshot. They go on with
the share of a step's time, the seconds of a swap in and out, and the first limit that breaks. The model behind it, and
how near it comes: docs/scale.md.
"""

import argparse
import math
from collections.abc import Callable

from weight_averaging.cli.costs import BYTES, Machine, Run, places, whole_file
from weight_averaging.placement import size
from weight_averaging.words import counted

EXAMPLES = """\
for example:
  weight-averaging plan --params 124e6 --step-seconds 0.05
      a language model on one GPU
  weight-averaging plan --params 7e9 --dtype bf16 --ranks 64 --shards 8 --step-seconds 1.2 --host-gb 1000
      on 8 nodes, each of them with a whole copy in 8 shards
  weight-averaging plan --params 70e9 --dtype bf16 --ranks 256 --zero 3 --tensor-parallel 8 --step-seconds 5
      FSDP2 over 32 groups of 8 ranks, each of which shares its layers
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    run, machine = Run(params=1), Machine()

    def number(name: str, default: float | None, text: str, kind: Callable[[str], float] = float) -> None:
        option = f"--{name.replace('_', '-')}"
        names = dict.fromkeys((option, f"--{name}"))
        shown = "" if default is None else f" (default: {default:g})"
        parser.add_argument(*names, dest=name, type=kind, default=default, required=default is None, help=text + shown)

    number("params", None, "number of weights of the model, as 7e9 or 7B", _count)
    parser.add_argument(
        "--dtype", choices=sorted(BYTES), default="float32", help="type of the weights (default: float32)"
    )
    number("ranks", run.ranks, "number of processes, one a device", int)
    number(
        "shards", run.shards, "number of ranks that share one copy of the weights (FSDP); 1: each has all (DDP)", int
    )
    number("zero", run.zero, "stage of ZeRO: 3 shards over all ranks (FSDP2), 1 and 2 are DeepSpeed's", int)
    number("tensor_parallel", run.tensor_parallel, "number of ranks that share each layer's weights", int)
    number("window", run.window, "number of snapshots in the LAWA", int)
    number("interval", run.interval, "number of updates between snapshots", int)
    number("step_seconds", None, "seconds of an update without averaging")
    number("ranks_per_node", machine.ranks_per_node, "number of devices in a node", int)
    number("device_gb", machine.device_gb, "memory of each device that training leaves free, in GB")
    number("host_gb", machine.host_gb, "memory of a node that is free, in GB")
    number(
        "device_gbs",
        machine.device_gbs,
        "bandwidth of a device's memory, in GB/s read and written: an H100's",
    )
    number("host_gbs", machine.host_gbs, "speed at which the node computes a mean, in GB/s: 16 cores beside an H100")
    number("pcie_gbs", machine.pcie_gbs, "bandwidth from a device to the host, in GB/s")
    number("disk_gbs", machine.disk_gbs, "speed at which a node writes snapshots, in GB/s")
    number("network_gbs", machine.network_gbs, "bandwidth from other ranks to each, in GB/s: that of the slowest link")


def _count(text: str) -> float:
    """A number, also with K, M, B (or G) or T behind it: 7B is 7e9."""
    units = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
    try:
        value = float(text[:-1]) * units[text[-1:].lower()] if text[-1:].lower() in units else float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise argparse.ArgumentTypeError(f"must be a number of weights, as 7e9 or 7B, not {text}")
    return value


def run(args: argparse.Namespace) -> None:
    given = vars(args)
    training = Run(
        dtype_bytes=BYTES[args.dtype],
        **{name: given[name] for name in Run.__dataclass_fields__ if name != "dtype_bytes"},
    )
    machine = Machine(**{name: given[name] for name in Machine.__dataclass_fields__})
    ranks = counted(training.ranks, "rank")
    shards = training.parts // training.tensor_parallel
    where = f"{ranks}, {shards} shards" if shards > 1 else ranks
    where += f", tensor parallel over {training.tensor_parallel}" if training.tensor_parallel > 1 else ""
    where += f", ZeRO-{training.zero}" if training.zero in (1, 2) else ""
    every = "update" if args.interval == 1 else f"{args.interval} updates"
    print(f"{args.params:.3g} weights in {args.dtype}, {where}; LAWA of {args.window}, every {every}\n")
    head = ("", "device", "evaluating", "host/node", "disk", "moved/snapshot", "of step time", "swap", "")
    rows: list[tuple[str, ...]] = [head]
    costs = places(training, machine)
    for (kind, place), cost in costs.items():
        rows.append(
            (
                f"{kind.upper()}, {place}",
                *(size(value) if value else "-" for value in (cost.device, cost.evaluation, cost.host, cost.disk)),
                size(cost.traffic) if cost.traffic else "-",
                f"{100 * cost.share:.3f} %",
                f"{cost.swap:.3g} s" if cost.swap else "-",
                cost.limit or "fits",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(
        "\nDevice memory is that of the rank that has most, beside the model itself. Not counted: launches, which are "
        "what\nan update of a small model costs, and from disk the pass over the snapshots after training."
    )
    if training.gathered:
        lawa, ema = (costs[kind, "device"].gathered for kind in ("lawa", "ema"))
        took = [f"{bytes_ / machine.network_gbs / 1e9:.3g} s" for bytes_ in (lawa, ema)]
        print(
            "\nThe float32 masters, gathered on each rank, are part of that. "
            f"A snapshot of the LAWA waits {took[0]} for\n"
            f"{size(lawa)} from other ranks, one of the EMA {took[1]} for {size(ema)}."
        )
    if training.parts > 1:
        print(f"\nA whole average (save_average) is on the first rank after {whole_file(training, machine):.3g} s.")
