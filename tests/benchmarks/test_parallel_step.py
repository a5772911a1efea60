"""What `benchmarks.training_step --parallel` measures: an update that is slow on purpose shows in its ratios."""

import json
import socket
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist

from tests.support.warm_python import python

INTERVAL, ROUNDS, SECONDS = 4, 2, 0.25


@pytest.mark.skipif(
    not dist.is_available() or torch.__version__.startswith("2.5."), reason="torch 2.5 has FSDP2 elsewhere"
)
def test_a_slow_update_shows_in_the_ratios():
    result = subprocess.run(
        [python(), "-m", "tests.benchmarks.test_parallel_step"], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    none, lawa, ema = json.loads(result.stdout)
    assert [row[0] for row in (none, lawa, ema)] == ["none", "LAWA of 3", "EMA"]

    slow = INTERVAL * SECONDS

    def seconds_of_a_turn(row: list) -> float:
        return row[1] * INTERVAL / 1e3

    def seconds_in_update(row: list) -> float:
        return seconds_of_a_turn(row) * (1 - 1 / row[3])

    assert seconds_of_a_turn(lawa) > slow
    assert seconds_in_update(lawa) == pytest.approx(slow, rel=0.3)
    assert seconds_in_update(ema) < 0.5 * slow
    assert none[3] == 1
    assert lawa[2] > 1 + 0.5 * slow / seconds_of_a_turn(none)

    model = none[4], ema[4], lawa[4]  # bytes: nothing, the average and the raw weights, three snapshots and those
    assert model[0] == 0
    assert model[2] == 2 * model[1] > 0


def main(rank: int, results: object, port: int) -> None:
    """In two processes: LAWA's update sleeps, EMA's does not."""
    from benchmarks import parallel_step

    class Slow(parallel_step.LAWA):
        def update(self, step: int, *arguments: object) -> bool:
            time.sleep(SECONDS)
            return super().update(step, *arguments)

    parallel_step.INTERVAL, parallel_step.WINDOW, parallel_step.LAWA = INTERVAL, 3, Slow
    parallel_step.WIDTH, parallel_step.LAYERS = 16, 1
    parallel_step.main(rank, 2, port, "ddp", ROUNDS, results)


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    queue = torch.multiprocessing.get_context("fork").SimpleQueue()
    torch.multiprocessing.start_processes(main, (queue, port), nprocs=2, start_method="fork")
    json.dump(queue.get(), sys.stdout)
