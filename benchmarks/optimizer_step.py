"""What a training step takes with each base optimizer, on miniature workloads.

    python -m benchmarks.optimizer_step

Processor time of `update_params` on one thread, without drawing the batch: the median of turns of 20 steps, which are
taken in turns; beside it the ratio to NadamW's. Each optimizer has the first point of its search space; those whose
package is missing are left out.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import machine
from benchmarks.training_step import Training
from miniperf import submission, workloads
from weight_averaging.errors import UsageError

OPTIMIZERS = ("nadamw", "ademamix", "schedule_free_adamw", "soap", "shampoo")
WORKLOADS = ("mini_fastmri", "mini_finewebedu_lm", "mini_imagenet_vit", "mini_ogbg")
STEPS = 20


def training(workload: str, name: str) -> Training | None:
    """None without the package."""
    point: dict[str, Any] = json.loads(Path(f"tuning_search_spaces/miniperf/{name}.json").read_text())[0]
    module = submission.load(f"submissions/pytorch/{name}/submission.py")
    if module.recipe.optimizer.missing():
        return None
    return Training(workload, name, point, base={})


def turn(run: Training) -> float:
    """Seconds a step."""
    batches = [next(run.queue) for _ in range(STEPS)]
    start = time.process_time()
    for batch in batches:
        run.update(batch)
    return (time.process_time() - start) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="turns of each; the median counts (default: 9)")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help=f"default: {','.join(WORKLOADS)}")
    arguments = parser.parse_args()
    chosen = arguments.workloads.split(",")
    try:
        for name in chosen:
            workloads.module_of(name, "pytorch")
    except UsageError as error:
        parser.error(str(error))
    torch.set_num_threads(1)
    print(f"{machine()}; median of {arguments.rounds} turns of {STEPS} steps\n")
    print(f"| ms, ratio to NadamW | {' | '.join(OPTIMIZERS)} |\n|{'---|' * (1 + len(OPTIMIZERS))}")
    for workload in chosen:
        runs = {name: training(workload, name) for name in OPTIMIZERS}
        times: dict[str, list[float]] = {name: [] for name in OPTIMIZERS}
        for _ in range(1 + arguments.rounds):  # the first warms up
            for name, run in runs.items():
                if run is not None:
                    times[name].append(turn(run))
        base = statistics.median(times["nadamw"][1:])
        medians = [statistics.median(t[1:]) if t else None for t in times.values()]
        cells = ["-" if m is None else f"{1e3 * m:.2f}, {m / base:.2f}" for m in medians]
        print(f"| {workload} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
