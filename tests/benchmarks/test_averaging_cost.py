"""The benchmark of updates runs to its end, and an EMA's update stays near what moving its bytes takes."""

import os
import statistics
import time

import pytest
import torch

from benchmarks import averaging_cost, training_step
from weight_averaging import torch as torch_averages
from weight_averaging.torch import EMA

LIMIT = 1.5  # of the time of one flat `lerp_`
MODEL = {"numel": 12_000_000, "width": 512}  # 48 MB: beyond most caches


def test_the_benchmark_has_a_row_for_each_action():
    both = {"": torch_averages, ", before": averaging_cost.earlier(os.getcwd())}
    assert both[", before"] is not torch_averages
    rows = averaging_cost.measure(averaging_cost.model_of(1, width=32), 1, both)
    rows += [(name, seconds, 1.0) for name, seconds in averaging_cost.small(1, both, calls=2).items()]
    names = {"update, not due", "update, not due, before", "EMA.update", "EMA.update, before"}
    assert names < {row[0] for row in rows}
    assert {"EMA.update", "EMA.update, unchecked", "swap in, LAWA of 20", "torch swa_utils EMA"} < {r[0] for r in rows}
    assert all(seconds > 0 and ratio > 0 for _, seconds, ratio in rows)


def test_a_folder_without_the_library_is_not_timed_as_another(tmp_path):
    with pytest.raises(ValueError, match="is no working tree: it has no weight_averaging/torch"):
        averaging_cost.earlier(str(tmp_path))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--ranks=3"], "--ranks=3 goes with --parallel=ddp|fsdp2|tensor|fsdp2_tensor"),
        (["--parallel=ddp", "--ranks=0"], "--ranks must be 2 or more, not 0"),
        (["--parallel=fsdp2_tensor"], "fsdp2_tensor takes 4 ranks, or a higher even number, not 2"),
    ],
)
def test_wrong_numbers_of_ranks_are_one_line(flags, says, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["training_step", *flags])
    with pytest.raises(SystemExit):
        training_step.main()
    assert capsys.readouterr().err.endswith(f"error: {says}\n")


@pytest.fixture
def one_thread():
    """Where a thread's own processor time tells how long it took, however busy the cores are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def over_limit(update, numel, attempts=5, rounds=9):
    """The time of an update over that of one flat kernel that moves the same bytes: the median of ratios in rounds.

    The least of some attempts, since what others do to caches and memory only ever adds to it.
    """
    average, weights = torch.randn(numel), torch.randn(numel)

    def seconds(action):
        start = time.thread_time()
        action()
        return time.thread_time() - start

    least = float("inf")
    for _ in range(attempts):
        pairs = [(seconds(lambda: average.lerp_(weights, 0.1)), seconds(update)) for _ in range(rounds)]
        least = min(least, statistics.median(ours / flat for flat, ours in pairs))
        if least <= LIMIT:
            break
    return least


def ema_of(model):
    ema, steps = EMA(model, decay=0.9, check_finite=False), iter(range(1, 1 << 60))
    ema.update(next(steps))
    return lambda: ema.update(next(steps))


def test_an_update_of_an_ema_stays_near_the_time_of_moving_its_bytes(one_thread):
    model = averaging_cost.model_of(**MODEL)
    update = ema_of(model)
    assert over_limit(update, sum(p.numel() for p in model.parameters())) <= LIMIT


def test_an_update_that_is_twice_as_slow_is_noticed(one_thread):
    model = averaging_cost.model_of(**MODEL)
    update = ema_of(model)
    numel = sum(p.numel() for p in model.parameters())
    assert over_limit(lambda: (update(), update()), numel, attempts=2) > LIMIT
