"""The cost of averaging Hugging Face checkpoints from a disk, beside reading them.

    python -m benchmarks.hugging_face_cost
    python -m benchmarks.hugging_face_cost --megabytes=2000 --actions=mean,written,grid --rounds=1 --folder=/mnt/disk
    python -m benchmarks.hugging_face_cost --count=14 --actions=mean,sweep      # 40 averages in one pass

Writes `--count` folders of `--megabytes` of bfloat16 weights each, in two parts with an index, by the safetensors
library, and takes every action in turns, on one thread. Before each the files are put out of memory (the page cache):
seconds are those of the disk and the machine. Where the machine is busy with other things CPU seconds say more. The
averages stay within 4 GB, as those of the command do. The most memory that the process had of its own is told, from a
pass more of each that is not timed.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.offline_cost import BUDGET, grid, memory_added, return_memory_at_once
from benchmarks.offline_cost import average as take
from benchmarks.timing import machine
from weight_averaging.averages import Average
from weight_averaging.offline import LAWA, Plan, Snapshots
from weight_averaging.offline.writing.to_files import average_to_files

WIDTH = 2048
PIECE = 1 << 20


def write(folder: Path, count: int, size: int) -> None:
    """`count` checkpoints of about `size` bytes."""
    rows = max(1, size // 2 // 8 // WIDTH)
    weight = torch.randn(rows, WIDTH).to(torch.bfloat16)
    for step in range(1, count + 1):
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir()
        state = {f"layers.{i}.weight": weight * step for i in range(8)}
        names = list(state)
        files = {"model-00001-of-00002.safetensors": names[:4], "model-00002-of-00002.safetensors": names[4:]}
        for file, own in files.items():
            save_file({name: state[name] for name in own}, checkpoint / file, {"format": "pt"})
        where = {name: file for file, own in files.items() for name in own}
        (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
        (checkpoint / "config.json").write_text("{}")


def forget(folder: Path) -> None:
    """Put the files out of the page cache."""
    os.sync()
    for path in folder.rglob("*.safetensors"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(folder: Path) -> None:
    buffer = bytearray(PIECE)
    for path in sorted(folder.rglob("*.safetensors")):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def average(folder: Path, out: Path) -> None:
    """What `weight-averaging average` does."""
    snapshots = Snapshots(folder)
    wanted = (LAWA(window=len(snapshots.steps)), snapshots.steps[-1])
    plan = Plan([wanted], snapshots.steps, latest=())
    average_to_files(snapshots, plan, {wanted: out}, BUDGET)
    shutil.rmtree(out)


def sweep(count: int) -> list[tuple[Average, int]]:
    """Means of 2 to 6 snapshots as of each of the last eight: 40, where there are 13 snapshots or more."""
    return [(LAWA(window=window), at) for at in range(max(count - 7, 6), count + 1) for window in range(2, 7)]


def by_library(folder: Path) -> None:
    """The same pass with tensors from safetensors' own `safe_open`; its result is not written."""
    snapshots = Snapshots(folder)

    def stream() -> Iterator[tuple[int, dict[str, Tensor]]]:
        for step, path in snapshots.paths.items():
            state = {}
            for part in sorted(path.glob("*.safetensors")):
                with safe_open(part, "pt") as file:
                    state.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - no dict
            yield step, state

    plan = Plan([(LAWA(window=len(snapshots.steps)), snapshots.steps[-1])], snapshots.steps, latest=())
    for _ in plan.run(stream()):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=500, help="of a checkpoint (default: 500)")
    parser.add_argument("--count", type=int, default=10, help="checkpoints (default: 10)")
    parser.add_argument("--rounds", type=int, default=3, help="timings of each action; the median counts (default: 3)")
    parser.add_argument(
        "--actions",
        default="read,mean,written,safe_open",
        help="what to take (default: read,mean,written,safe_open; also: grid, sweep)",
    )
    parser.add_argument("--folder", default=None, help="where to put them (default: the temporary folder)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name) / "run"
        folder.mkdir()
        write(folder, arguments.count, arguments.megabytes * 1_000_000)
        out = Path(name) / "average"
        mean: list[tuple[Average, int]] = [(LAWA(window=arguments.count), arguments.count)]
        points, ends = grid(arguments.count), sweep(arguments.count)
        known: dict[str, tuple[str, Callable[[], object]]] = {
            "read": ("read the files", lambda: read(folder)),
            "mean": ("mean, this library", lambda: take(folder, mean)),
            "written": ("mean, this library, written to a folder", lambda: average(folder, out)),
            "safe_open": ("mean, tensors by safetensors' safe_open", lambda: by_library(folder)),
            "grid": (f"grid of {len(points)}, this library", lambda: take(folder, points)),
            "sweep": (f"{len(ends)} means of other windows and ends", lambda: take(folder, ends)),
        }
        chosen = ["read", *(name for name in arguments.actions.split(",") if name != "read")]
        if unknown := [name for name in chosen if name not in known]:
            parser.error(f"--actions={','.join(unknown)}: there are {','.join(known)}")
        actions = dict(known[name] for name in chosen)
        seconds: dict[str, list[tuple[float, float]]] = {key: [] for key in actions}
        for _ in range(arguments.rounds):
            for key, action in actions.items():
                forget(folder)
                start, cpu = time.perf_counter(), time.process_time()
                action()
                seconds[key].append((time.perf_counter() - start, time.process_time() - cpu))
                print(f"{key}: {seconds[key][-1]}", flush=True)
        return_memory_at_once()
        most = max(memory_added(action) for key, action in actions.items() if key != known["read"][0])
        total = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    print(f"{machine()}; {arguments.count} checkpoints, {total / 1e9:.2f} GB, median of {arguments.rounds}\n")
    print("| action | s | ratio to reading | GB/s | CPU s |\n|---|---|---|---|---|")
    base = statistics.median(wall for wall, _ in seconds["read the files"])
    for key, pairs in seconds.items():
        wall, cpu = (statistics.median(values) for values in zip(*pairs))
        print(f"| {key} | {wall:.2f} | {wall / base:.2f} | {total / wall / 1e9:.2f} | {cpu:.2f} |")
    print(f"\nmost memory of its own: {most * 2**20 / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
