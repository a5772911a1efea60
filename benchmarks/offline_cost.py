"""The cost of averaging snapshots on disk, beside reading them and beside what people do instead.

    python -m benchmarks.offline_cost

Writes `--count` snapshots of `--numel` parameters into a folder that is removed at the end, and takes every action in
turns on one thread. Figures are CPU time, the system's included: the machines are shared, so waiting says nothing. With
the files in memory (the page cache, or a --folder there) reading is a copy from memory into a buffer that is used again
for each file: the hardest baseline to be near to. Results are thrown away, not written.
"""

import argparse
import ctypes
import itertools
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from benchmarks.timing import machine
from weight_averaging.averages import EMA, LAWA, Average
from weight_averaging.offline import Plan
from weight_averaging.offline.passes.pieces import streams
from weight_averaging.offline.reading.snapshots import Snapshots
from weight_averaging.offline.safetensors_files import SafetensorsWriter
from weight_averaging.offline.writing.to_files import parts_of

INTERVALS = (1, 2, 3, 4)  # in snapshots; windows and decays: five each
WINDOWS = (2, 3, 4, 5, 6)
DECAYS = (0.5, 0.7, 0.8, 0.9, 0.95)
BUDGET = 4_000_000_000


def model_of(numel: int) -> nn.Module:
    width = 1024
    layers: list[nn.Module] = []
    while sum(p.numel() for layer in layers for p in layer.parameters()) < numel:
        layers.append(nn.ModuleList([nn.Linear(width, 4 * width), nn.Linear(4 * width, width), nn.LayerNorm(width)]))
    return nn.ModuleList(layers)


def write(folder: Path, model: nn.Module, count: int) -> None:
    layout = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in model.state_dict().items()}
    for step in range(1, count + 1):
        with SafetensorsWriter(folder / f"step_{step}.safetensors", layout) as file:
            for name, tensor in model.state_dict().items():
                file.write(name, tensor + step)


def read(paths: list[Path], buffer: bytearray) -> None:
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            file.readinto(buffer)


def average(folder: Path, wanted: Sequence[tuple[Average, int]]) -> None:
    """As the command does; results are not written."""
    snapshots = Snapshots(folder)
    plan = Plan(wanted, snapshots.steps, latest=())
    cut = parts_of(snapshots, plan, snapshots.layout, BUDGET)
    for _, results in plan.run_parts(streams(snapshots, plan.needed, cut, lambda count: None)):
        for _ in results:
            pass


def averaged_model(folder: Path, model: nn.Module) -> None:
    """The loop that torch's documentation shows."""
    averaged = torch.optim.swa_utils.AveragedModel(model)
    snapshots = Snapshots(folder)
    for _, state in snapshots.stream(snapshots.steps):
        model.load_state_dict(state)
        averaged.update_parameters(model)


def stacked(folder: Path) -> None:
    snapshots = Snapshots(folder)
    states = [state for _, state in snapshots.stream(snapshots.steps)]
    for name in states[0]:
        torch.stack([state[name] for state in states]).mean(0)


def grid(count: int) -> list[tuple[Average, int]]:
    lawa = [LAWA(window=w, interval=i) for w, i in itertools.product(WINDOWS, INTERVALS) if w * i <= count]
    ema = [EMA(decay=d, interval=i) for d, i in itertools.product(DECAYS, INTERVALS)]
    return [(point, count) for point in (*lawa, *ema)]


def cpu_seconds(action: Callable[[], object]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def memory_added(action: Callable[[], object]) -> float:
    """The MiB by which the process's own memory (no mapped files) grows at most."""
    before, most, done = own_memory(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    action()
    done.set()
    watcher.join()
    return max(most - before, 0.0)


def return_memory_at_once() -> None:
    """Have the C library give freed memory back to the system, so that growth shows; too slow for timing."""
    library = ctypes.CDLL(None)
    library.mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD
    library.malloc_trim(0)


def own_memory() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--numel", type=int, default=100_000_000, help="parameters of the model (default: 1e8)")
    parser.add_argument("--count", type=int, default=24, help="snapshots (default: 24)")
    parser.add_argument("--rounds", type=int, default=3, help="timings of each action; the median counts (default: 3)")
    parser.add_argument("--folder", default=None, help="where to put the snapshots (default: the temporary folder)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = model_of(arguments.numel)
    numel = sum(p.numel() for p in model.parameters())
    points = grid(arguments.count)
    mean: list[tuple[Average, int]] = [(LAWA(window=arguments.count), arguments.count)]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        write(folder, model, arguments.count)
        paths = sorted(folder.iterdir())
        buffer = bytearray(paths[0].stat().st_size)
        a, b = torch.ones(numel), torch.ones(numel)
        actions: dict[str, Callable[[], object]] = {
            "read": lambda: read(paths, buffer),
            "copy": lambda: b.copy_(a),
            "mean": lambda: average(folder, mean),
            "averaged_model": lambda: averaged_model(folder, model),
            "stacked": lambda: stacked(folder),
            "grid": lambda: average(folder, points),
            "one by one": lambda: [average(folder, [point]) for point in points],
        }
        times: dict[str, list[float]] = {key: [] for key in actions}
        for _ in range(arguments.rounds):
            for key, action in actions.items():
                times[key].append(cpu_seconds(action))
        return_memory_at_once()
        memory = {key: memory_added(actions[key]) for key in ("mean", "averaged_model", "stacked", "grid")}
    seconds = {key: statistics.median(values) for key, values in times.items()}
    # A running average is read and written, and a snapshot read, for each snapshot that it takes: 3/2 of a copy.
    taken = sum(len(point.members(range(1, at + 1), at)) for point, at in points)
    limit = seconds["read"] + taken * 1.5 * seconds["copy"]
    size = numel * 4 / 2**20
    print(f"{machine()}; {arguments.count} snapshots of {numel:.3g} float32 parameters, median of {arguments.rounds}")
    print(f"{len(points)} grid points take in {taken} snapshots; a model is {size:.0f} MiB\n")
    print("| action | CPU s | ratio to | | memory added, models |\n|---|---|---|---|---|")
    against_read, against_limit = "reading the files", "reading + arithmetic limit"
    for key, label, base, against in [
        ("read", "read the files", seconds["read"], against_read),
        ("mean", "plain mean, this library", seconds["read"], against_read),
        ("averaged_model", "plain mean, torch AveragedModel loop", seconds["read"], against_read),
        ("stacked", "plain mean, load all and stack", seconds["read"], against_read),
        ("grid", f"grid of {len(points)}, one pass", limit, against_limit),
        ("one by one", f"grid of {len(points)}, one job a point", seconds["grid"], "one pass"),
    ]:
        added = f"{memory[key] / size:.1f}" if key in memory else ""
        print(f"| {label} | {seconds[key]:.2f} | {seconds[key] / base:.2f} | {against} | {added} |")


if __name__ == "__main__":
    main()
