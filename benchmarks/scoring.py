"""The time of reading and scoring archives of run logs.

    python -m benchmarks.scoring algoperf_v05_external.tar.xz algoperf_a100_self_tuning.tar.xz

Runs scripts.score on each archive several times, and shows the shortest run: seconds on the clock, and CPU seconds (the
system's included), which other work on the machine disturbs less. Both hold the start of Python and all imports. The
limits are 5 s for the 3,718 runs of v0.5 and 2 s for the 451 of the A100 leaderboard.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from analysis.reading import logs
from weight_averaging.errors import UsageError


def once(archive: Path) -> tuple[float, float]:
    """Seconds on the clock and of the CPU of one scoring."""
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-m", "scripts.score", f"--logs={archive}"], check=True, capture_output=True)
    wall, after = time.perf_counter() - start, os.times()
    return wall, sum(after[2:4]) - sum(before[2:4])  # of children, user and system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archives", nargs="+", type=Path, help="archives or folders of run logs")
    parser.add_argument("--repeats", type=int, default=5)
    flags = parser.parse_args()
    print("| archive | runs | seconds | CPU seconds |\n| --- | --- | --- | --- |")
    for archive in flags.archives:
        try:
            runs = len(logs.read(archive).runs)
        except UsageError as error:
            sys.exit(f"error: {error}")
        times = [once(archive) for _ in range(flags.repeats)]
        wall, cpu = min(times)[0], min(cpu for _, cpu in times)
        print(f"| {archive.name} | {runs} | {wall:.2f} | {cpu:.2f} |")


if __name__ == "__main__":
    main()
