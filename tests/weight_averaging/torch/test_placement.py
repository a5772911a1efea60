"""Where the window goes, and refusals before any training."""

import logging
import os

import pytest
import torch
from torch import nn

from tests.support.small_models import feed, model_of, scalar_model
from weight_averaging import placement
from weight_averaging.averages import EMA as EMADescription
from weight_averaging.averages import LAWA as LAWADescription
from weight_averaging.averages import Tail
from weight_averaging.torch import LAWA, Averages
from weight_averaging.torch.memory import placement as torch_placement

GPU = torch.device("cuda", 0)
GB = 10**9


@pytest.fixture
def memory(monkeypatch):
    """A machine with this much free."""

    def set_free(device: float, host: float) -> None:
        monkeypatch.setattr(torch_placement, "free_device_bytes", lambda _: int(device * GB))
        monkeypatch.setattr(placement, "free_host_bytes", lambda: int(host * GB))

    return set_free


@pytest.mark.parametrize(
    ("asked", "need", "chosen"),
    [("auto", 5, "cuda"), ("auto", 9, "cpu"), ("host", 1, "cpu"), ("device", 79, "cuda")],
)
def test_auto_takes_the_device_for_a_small_share_of_it(memory, caplog, asked, need, chosen):
    memory(device=80, host=100)
    with caplog.at_level(logging.INFO, "weight_averaging"):
        assert torch_placement.choose(asked, GPU, need * GB, "a window").type == chosen
    where = "pinned host memory" if chosen == "cpu" else "the memory of cuda:0"
    assert caplog.messages == [f"a window is {need} GB, in {where}"]


def test_what_does_not_fit_is_refused_with_the_next_thing_to_try(memory):
    memory(device=80, host=30)
    with pytest.raises(MemoryError, match=r'a window is 90 GB on cuda:0, where 80 GB are free: try placement="host"'):
        torch_placement.choose("device", GPU, 90 * GB, "a window")
    for asked in ("auto", "host"):
        with pytest.raises(
            MemoryError, match=r"90 GB in host memory, where 30 GB are free: take fewer snapshots, .*offline"
        ):
            torch_placement.choose(asked, GPU, 90 * GB, "a window")
    with pytest.raises(ValueError, match="placement must be one of auto, device, host, not 'gpu'"):
        torch_placement.choose("gpu", GPU, 1, "a window")


def test_a_window_larger_than_this_machine_is_refused_at_once():
    model = nn.Linear(1000, 1000)  # a million snapshots of it: 4 TB
    with pytest.raises(MemoryError, match=r"a window of 1000000 snapshots of 1,001,000 weights is 4 TB"):
        LAWA(model, interval=1, window=1_000_000)


def test_free_host_memory_is_what_the_machine_says():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < placement.free_host_bytes() < total


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
    files = {
        "/proc/meminfo": "MemTotal: 900 kB\nMemAvailable: 500 kB\n",
        "/sys/fs/cgroup/memory.max": "300000\n",
        "/sys/fs/cgroup/memory.current": "250000\n",
        "/sys/fs/cgroup/memory.stat": "anon 100000\nactive_file 50000\ninactive_file 100000\n",
    }
    monkeypatch.setattr(
        placement.Path, "read_text", lambda self: files[str(self)] if str(self) in files else _missing()
    )
    assert placement.free_host_bytes() == 200_000
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert placement.free_host_bytes() == 500 << 10


def _missing():
    raise FileNotFoundError


def test_the_window_takes_no_more_memory_than_it_says():
    model = model_of()
    lawa = LAWA(model, interval=1, window=4)
    for step in range(1, 10):
        lawa.update(step)
    memory = {vector.data_ptr() for vector in lawa._tracks[0].slots()}
    lawa.update(10)
    with lawa.averaged():
        pass
    assert len(memory) == 4
    assert {vector.data_ptr() for vector in lawa._tracks[0].slots()} == memory
    assert {vector.data_ptr() for vector in lawa.state_dict()["tracks"][0]["vectors"]} == memory


def test_averages_share_the_longest_window_of_an_interval():
    model = scalar_model()
    wanted = [LAWADescription(window=w, interval=i) for w in (2, 5, 3) for i in (1, 2)]
    grid = Averages(model, [*wanted, EMADescription(decay=0.5, interval=1), EMADescription(decay=0.9, interval=1)])
    assert sorted(len(track.slots()) for track in grid._tracks) == [1, 1, 5, 5]
    feed(grid, model, [float(v) for v in range(1, 11)])
    values = {}
    for average in wanted:
        grid.select(average)
        with grid.averaged():
            values[average.window, average.interval] = model.weight.item()
    assert values == {(2, 1): 9.5, (5, 1): 8, (3, 1): 9, (2, 2): 9, (5, 2): 6, (3, 2): 8}


def test_misuse_of_averages_is_told():
    model = scalar_model()
    lawa, ema = LAWADescription(window=2, interval=1), EMADescription(decay=0.5, interval=1)
    for wanted, error, message in (
        ([], ValueError, "no averages to track"),
        ([lawa, lawa], ValueError, "lawa window=2 interval=1 is there twice"),
        ([LAWADescription(window=2)], ValueError, "lawa window=2 needs an interval"),
        ([Tail(share=0.5, interval=1)], TypeError, "tail share=0.5 interval=1 cannot be tracked along training"),
    ):
        with pytest.raises(error, match=message):
            Averages(model, wanted)
    grid = Averages(model, [lawa, ema])
    feed(grid, model, [1.0, 2.0])
    grid.swap_in()
    with pytest.raises(RuntimeError, match="while lawa window=2 interval=1 is in the model"):
        grid.select(ema)
    grid.swap_out()
    with pytest.raises(KeyError, match=r"ema decay=0.9 interval=1 is not among the averages"):
        grid.select(EMADescription(decay=0.9, interval=1))
    with pytest.raises(ValueError, match="has averages="):
        Averages(model, [lawa]).load_state_dict(grid.state_dict())
