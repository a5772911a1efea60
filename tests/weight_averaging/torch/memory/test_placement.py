"""Where the window goes, and refusals before any training."""

import copy
import gc
import logging
import os
import weakref
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.support.small_models import feed, model_of, scalar_model
from weight_averaging import placement
from weight_averaging.averages import EMA as EMADescription
from weight_averaging.averages import LAWA as LAWADescription
from weight_averaging.averages import Tail
from weight_averaging.torch import EMA, LAWA, Averages
from weight_averaging.torch.memory import placement as torch_placement
from weight_averaging.torch.memory.host_copies import NoStreams
from weight_averaging.torch.tracks import make

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


MB = 10**6


@pytest.fixture
def free(monkeypatch):
    """A machine with 10 MB free, on which nothing has been promised; a model of 100,000 weights has .4 MB."""
    monkeypatch.setattr(placement, "_HOLDERS", weakref.WeakSet())
    monkeypatch.setattr(placement, "free_host_bytes", lambda: 10 * MB)
    return torch.nn.Linear(100_000, 1, bias=False)


def test_what_is_held_and_not_yet_used_adds_up(free):
    """The machine counts memory as free until somebody writes to it."""
    first = LAWA(free, interval=1, window=15)
    with pytest.raises(MemoryError, match=r"is 6 MB in host memory, where 3.2 MB are free \(6.8 MB more go to"):
        LAWA(free, interval=1, window=15)
    second = EMA(free, decay=0.5)
    assert placement.promised() == (15 + 1) * 4 * 10**5 + (1 + 1) * 4 * 10**5  # and a copy of the model for each
    for step in range(1, 4):
        first.update(step)
        second.update(step)
    assert placement.promised() == (12 + 1) * 4 * 10**5 + 4 * 10**5
    for step in range(4, 16):
        first.update(step)
    with first.averaged():
        pass
    assert placement.promised() == 4 * 10**5
    del first
    gc.collect()
    assert placement.promised() == 4 * 10**5
    assert LAWA(free, interval=1, window=15)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["update", "load", "swap", "grow"]), max_size=12), st.integers(1, 4))
def test_what_was_promised_is_what_was_never_written_to(actions, window):
    model = torch.nn.ModuleList([torch.nn.Linear(3, 2)])
    lawa = LAWA(model, interval=1, window=window)
    for action in actions:
        if action == "update":
            lawa.update(lawa.step + 1)
        elif action == "load":
            lawa.load_state_dict(copy.deepcopy(lawa.state_dict()))
        elif action == "swap":
            lawa.swap_in()
            lawa.swap_out()
        else:
            model.append(torch.nn.Linear(3, 2))
            lawa.update(lawa.step + 1)
    (track,) = lawa._tracks
    held = len(track.vectors())
    assert track.unused_bytes <= (window - held) * 4 * lawa._weights.numel
    for _ in range(window + 1):
        lawa.update(lawa.step + 1)
    assert track.unused_bytes == 0


def test_averages_of_one_model_add_up(free):
    with pytest.raises(MemoryError, match="are free"):
        Averages(free, [LAWADescription(window=13, interval=i) for i in (1, 2)])
    assert Averages(free, [LAWADescription(window=12, interval=1), LAWADescription(window=8, interval=1)])


def test_each_rank_counts_where_all_hold_their_own(monkeypatch):
    monkeypatch.setattr(placement, "free_host_bytes", lambda: 10 * GB)
    monkeypatch.setattr(placement, "total_host_bytes", lambda: 20 * GB)
    monkeypatch.setattr(placement, "_HOLDERS", weakref.WeakSet())
    cpu = torch.device("cpu")
    assert torch_placement.choose("auto", cpu, 4 * GB, "a window", ranks=2) == cpu
    with pytest.raises(MemoryError, match=r"is 6 GB in host memory, on each of 2 ranks here, where 10 GB are free"):
        torch_placement.choose("auto", cpu, 6 * GB, "a window", ranks=2)
    monkeypatch.setattr(torch_placement, "free_device_bytes", lambda _: GB)
    assert torch_placement.choose("host", GPU, 6 * GB, "a window", ranks=3).type == "cpu"  # two may have theirs already
    with pytest.raises(MemoryError, match="on each of 4 ranks here"):
        torch_placement.choose("host", GPU, 6 * GB, "a window", ranks=4)


@pytest.mark.parametrize("system", ["Windows", "macOS"])
def test_other_systems_have_memory_too(system, monkeypatch):
    monkeypatch.setattr(placement.Path, "read_text", lambda self: _missing())
    if system == "Windows":
        monkeypatch.delattr(os, "sysconf")
    model = scalar_model()
    lawa = LAWA(model, interval=1, window=2)
    feed(lawa, model, [1.0, 2.0])
    assert placement.free_host_bytes() == placement.total_host_bytes() > 10**9
    with pytest.raises((MemoryError, RuntimeError)):  # RuntimeError: of torch's allocator
        LAWA(model, interval=1, window=1 << 62)


@pytest.mark.parametrize("kind", ["mps", "xpu", "cuda", "cpu"])
def test_accelerators_without_known_streams_copy_at_once(kind, monkeypatch):
    monkeypatch.setattr(make, "CudaStreams", lambda device: "cuda")
    weights = SimpleNamespace(device=torch.device(kind))
    maker = make.TrackMaker(SimpleNamespace(weights=weights, is_kept=False), None, "host", True)
    streams = None if maker._copies is None else maker._copies._streams
    assert {"cpu": streams is None, "cuda": streams == "cuda"}.get(kind, isinstance(streams, NoStreams))
    assert maker._used(SimpleNamespace(place=torch.device("cpu"))) is maker._copies
