"""How the cost of averaging grows with the model, the window and the ranks that share it.

    python -m benchmarks.growth --out=docs/results/engine

Writes growth.csv and growth.png: seconds of an EMA update, of a snapshot into a window and of a mean over it put into
the model, for 1e6 to 5e8 weights and windows of 2 to 100, with the exponent of the fitted power law; and for 1, 2 and 4
replicas on this machine the same two and the memory that averaging adds over all ranks. What would not fit into free
memory is left out and named.
"""

import argparse
import csv
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing
from matplotlib.ticker import LogLocator, NullLocator
from torch import nn
from tqdm import tqdm

from analysis.figures import style
from benchmarks.timing import device, machine, medians, resident
from weight_averaging.placement import free_host_bytes
from weight_averaging.torch import EMA, LAWA

WEIGHTS = (10**6, 10**7, 5 * 10**7, 10**8, 5 * 10**8)
WINDOWS = (2, 5, 10, 20, 50, 100)
RANKS = (1, 2, 4)
ROUNDS = 7


def vector_model(numel: int) -> nn.Module:
    """Weights in tensors of up to 16 million elements."""
    sizes = [min(1 << 24, numel - start) for start in range(0, numel, 1 << 24)]
    return nn.ParameterList([nn.Parameter(torch.zeros(size, device=device())) for size in sizes])


def seconds(numel: int, window: int) -> dict[str, float]:
    """Median seconds of each action on one rank."""
    model = vector_model(numel)
    step = iter(range(1, 1 << 60))
    ema, lawa = EMA(model, decay=0.9), LAWA(model, interval=1, window=window)
    for _ in range(window):
        lawa.update(next(step))
    ema.update(next(step))
    return medians(
        {
            "EMA update": lambda: ema.update(next(step)),
            "snapshot": lambda: lawa.update(next(step)),
            "mean, swap": lambda: (lawa.swap_in(), lawa.swap_out()),
        },
        ROUNDS,
    )


def rank_main(rank: int, ranks: int, folder: str, numel: int, window: int) -> None:
    threads = max(1, (os.cpu_count() or 1) // ranks)
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    model = vector_model(numel)
    warm = torch.zeros(1)
    dist.all_reduce(warm)  # buffers of the group are not averaging's
    before = resident()
    lawa = LAWA(model, interval=1, window=window, process_group=dist.group.WORLD)
    step = iter(range(1, 1 << 60))
    for _ in range(window + 1):
        lawa.update(next(step))
    lawa.swap_in()
    lawa.swap_out()
    memory = torch.tensor(float(resident() - before))
    dist.all_reduce(memory)
    result = medians(
        {
            "snapshot": lambda: (dist.barrier(), lawa.update(next(step))),
            "mean, swap": lambda: (dist.barrier(), lawa.swap_in(), lawa.swap_out()),
        },
        ROUNDS,
    )
    if rank == 0:
        torch.save({**result, "memory": memory.item()}, Path(folder, "result"))
    dist.destroy_process_group()


def with_ranks(ranks: int, numel: int, window: int) -> dict[str, float]:
    """The same on several replicas, and the bytes that averaging adds over all of them."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(rank_main, args=(ranks, folder, numel, window), nprocs=ranks)
        result: dict[str, float] = torch.load(Path(folder, "result"))
        return result


def measure(largest: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of growth.csv, and what was left out."""
    settings = [("weights", n, n, 2, 1) for n in WEIGHTS if n <= largest]
    settings += [("window", w, 10**7, w, 1) for w in WINDOWS]
    settings += [("ranks", r, 10**7, 20, r) for r in RANKS]
    rows, left_out = [], []
    for varied, value, numel, window, ranks in tqdm(settings, disable=None):
        need = 4 * numel * (window + 3 + 3 * ranks)
        if need > 0.9 * free_host_bytes():
            left_out.append(f"{numel:.0e} weights, window {window}: {need / 1e9:.0f} GB")
            continue
        result = seconds(numel, window) if varied != "ranks" else with_ranks(ranks, numel, window)
        common = {"varied": varied, "weights": numel, "window": window, "ranks": ranks}
        rows += [{**common, "action": name, "value": x, "against": value} for name, x in result.items()]
    return rows, left_out


def exponent(rows: list[dict[str, Any]], varied: str, action: str) -> float:
    """p of the least-squares fit value = c x^p."""
    points = [(row["against"], row["value"]) for row in rows if (row["varied"], row["action"]) == (varied, action)]
    x, y = np.log(np.array(points).T)
    return float(np.polyfit(x, y, 1)[0])


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Seconds against weights, window and ranks, and memory against ranks."""
    figure, axes = style.panels(4, size=(4.2, 3.2), columns=2)
    fixed = ("window 2, 1 rank", "1e7 weights, 1 rank", "1e7 weights, window 20")
    red, blue, green = style.COLOURS[4], style.COLOURS[6], style.COLOURS[3]
    markers = {"EMA update": ("o", red), "snapshot": ("s", blue), "mean, swap": ("^", green)}
    for axis, varied, title in zip(axes, ("weights", "window", "ranks"), fixed, strict=False):
        for action, (marker, colour) in markers.items():
            points = [(r["against"], 1e3 * r["value"]) for r in rows if (r["varied"], r["action"]) == (varied, action)]
            if len(points) > 1:
                label = f"{action}: power {exponent(rows, varied, action):.2f}"
                axis.loglog(*zip(*points, strict=True), marker=marker, color=colour, label=label)
        axis.set(xlabel=f"number of {varied}" if varied != "window" else "window (snapshots)", title=title)
        axis.set_ylabel("time (ms, lower is better)")
        axis.legend(fontsize=7, title="power: the slope", title_fontsize=7)
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}" if x < 1e4 else f"1e{np.log10(x):.0f}")
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(NullLocator())
    points = [(r["ranks"], r["value"] / r["weights"] / 4) for r in rows if r["action"] == "memory"]
    window = next((r["window"] for r in rows if r["action"] == "memory"), 0)
    if points:
        axes[3].plot(*zip(*points, strict=True), marker="o", color=style.COLOURS[0], label="measured, all ranks")
        ranks = [x for x, _ in points]
        axes[3].plot(ranks, [window + x for x in ranks], "--", color=blue, label="sum: a window, raw weights per rank")
        axes[3].plot(ranks, [(window + 1) * x for x in ranks], ":", color=red, label="sum: a window per rank")
        axes[3].set(xlabel="number of ranks", ylabel="added memory (models, lower is better)", title=fixed[-1], ylim=0)
        axes[3].legend(fontsize=7)
    for axis in axes[2:]:
        axis.set_xticks(RANKS, [str(r) for r in RANKS])
    axes[2].xaxis.minorticks_off()
    style.save(figure, path.with_suffix(""), [path.suffix[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/growth"), help="folder of growth.csv and growth.png")
    parser.add_argument("--largest", type=int, default=WEIGHTS[-1], help="weights of the largest model (default: 5e8)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows, left_out = measure(arguments.largest)
    with open(arguments.out / "growth.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, arguments.out / "growth.png")
    print(f"{machine()}\n")
    print(
        "| varied | weights | window | ranks | " + "EMA update, ms | snapshot, ms | mean, swap, ms | memory, models |"
    )
    print("|" + "---|" * 8)
    for key in dict.fromkeys((r["varied"], r["weights"], r["window"], r["ranks"]) for r in rows):
        value = {r["action"]: r["value"] for r in rows if (r["varied"], r["weights"], r["window"], r["ranks"]) == key}
        times = [
            f"{1e3 * value[name]:.1f}" if name in value else "" for name in ("EMA update", "snapshot", "mean, swap")
        ]
        memory = f"{value['memory'] / key[1] / 4:.1f}" if "memory" in value else ""
        print("| " + " | ".join([key[0], f"{key[1]:.0e}", str(key[2]), str(key[3]), *times, memory]) + " |")
    for line in left_out:
        print(f"left out, for want of memory: {line}")


if __name__ == "__main__":
    main()
