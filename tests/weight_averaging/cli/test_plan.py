"""What averaging costs on paper: sums that can be done by hand, and what was measured."""

import argparse
import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from launching.official_workloads import WORKLOADS
from tests.weight_averaging.cli.test_command import command
from weight_averaging.cli.costs import BYTES, Machine, Run, cost, places
from weight_averaging.cli.plan import _count
from weight_averaging.torch import EMA, LAWA

H100 = Machine(device_gb=78, host_gb=120, device_gbs=2980, host_gbs=48, pcie_gbs=55)
PAGE = Path("docs/results/gpu/nvidia_h100_80gb_hbm3.md")


def measured(row: str, column: int, section: str = "") -> float:
    """A cell of the page of an H100, by the first cells of its row."""
    text = PAGE.read_text().partition(f"## {section}")[2].partition("\n## ")[0] if section else PAGE.read_text()
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {row} |")]
    return float(line.strip("| ").split(" | ")[column])


def test_by_hand():
    run = Run(params=100, dtype_bytes=4, ranks=16, window=20, interval=10, step_seconds=2.0)
    machine = Machine(device_gbs=1e-9, host_gbs=1e-9, pcie_gbs=1e-9)  # a byte a second
    found = places(run, machine)
    assert [c.device for c in found.values()] == [8400, 400, 0, 400, 400]
    assert [c.evaluation for c in found.values()] == [8800, 400, 0, 800, 400]
    assert [c.host for c in found.values()] == [0, 8400, 400, 0, 800]
    assert [c.disk for c in found.values()] == [0, 0, 8000, 0, 0]
    assert [c.update for c in found.values()] == [1400, 1400, 0, 1800, 1400]
    assert found["lawa", "device"].swap == 2400 + 24000
    assert found["lawa", "host"].swap == 2400 + 8000 + 400
    assert found["lawa", "host"].exposed == 400 - 20
    assert found["ema", "device"].limit == ""
    assert found["lawa", "host"].share == (1400 + 380) / 20
    sharded = cost("lawa", "host", replace(run, shards=16), replace(machine, ranks_per_node=8))
    assert sharded.host == 8 * 8400 / 16  # eight ranks of a node hold their shards


@given(
    st.integers(1, 10**11), st.sampled_from([2, 4, 8]), st.sampled_from([(1, 1), (8, 1), (64, 8), (64, 64)]),
    st.integers(1, 200), st.integers(1, 1000),
)  # fmt: skip
def test_more_costs_more(params, dtype_bytes, ranks, window, interval):
    run = Run(params, dtype_bytes, *ranks, window=window, interval=interval)
    for pair, one in places(run, Machine()).items():
        for more in (replace(run, params=2 * params), replace(run, window=window + 1)):
            other = cost(*pair, more, Machine())
            for name in ("device", "evaluation", "host", "disk", "traffic", "update", "exposed", "swap"):
                assert getattr(other, name) >= getattr(one, name), (pair, name)
        assert one.evaluation >= one.device
        assert one.share >= 0
        rarer = cost(*pair, replace(run, interval=2 * interval), Machine())
        assert rarer.share <= one.share
        if ranks[0] % (2 * ranks[1]) == 0:
            assert cost(*pair, replace(run, shards=2 * ranks[1]), Machine()).device == one.device / 2


def test_bytes_are_those_of_the_averagers():
    model = torch.nn.Linear(1000, 10, bias=False)
    run = Run(params=10_000, window=5)
    lawa, ema = LAWA(model, interval=1, window=5), EMA(model, decay=0.9)
    held = {"lawa": lawa._tracks[0].slots(), "ema": ema._tracks[0].slots()}
    on_cpu = {"lawa": places(run, Machine())["lawa", "device"].device - 4 * 10_000}  # no spare beside a CPU's model
    on_cpu["ema"] = places(run, Machine())["ema", "device"].device
    assert {name: sum(4 * v.numel() for v in vectors) for name, vectors in held.items()} == on_cpu


def test_within_a_quarter_of_what_an_h100_took():
    small = Run(params=123_551_232, step_seconds=0.048)
    large, criteo = replace(small, params=500_000_000), replace(small, params=539_000_000)
    pairs = [
        (cost("ema", "device", small, H100).update, measured("language model, 123,551,232 | EMA", 2) / 1e3),
        (cost("lawa", "device", small, H100).update, measured("language model, 123,551,232 | LAWA, device", 2) / 1e3),
        (cost("ema", "device", large, H100).update, measured("few large, 500,000,000 | EMA", 2) / 1e3),
        (cost("lawa", "device", large, H100).update, measured("few large, 500,000,000 | LAWA, device", 2) / 1e3),
        (cost("lawa", "device", small, H100).swap, measured("LAWA of 20, device", 1) / 1e3),
        (cost("lawa", "host", small, H100).swap, measured("LAWA of 20, host", 1) / 1e3),
        (cost("lawa", "host", criteo, H100).swap, measured("swap in (mean of the window), s", 1)),
        (cost("lawa", "host", criteo, H100).host / 1e9, measured("less host memory available, GB", 1)),
        (4 * 539e6 / 55e9, measured("its copy is complete after, ms", 1) / 1e3),
    ]
    for paper, took in pairs:
        assert 0.75 < paper / took < 1.25
    one = 4 * 123_551_232
    for name, pair in {"EMA, device": ("ema", "device"), "LAWA, host": ("lawa", "host")}.items():
        found = cost(*pair, small, H100)
        assert found.device / one == pytest.approx(measured(name, 1, "Memory\n"), rel=0.05)
        assert found.evaluation / one == pytest.approx(measured(name, 3, "Memory\n"), rel=0.05)


def test_memory_of_replicas_on_a_cpu_is_what_was_measured():
    with open("docs/results/engine/growth.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["action"] == "memory"]
    assert {int(row["ranks"]) for row in rows} == {1, 2, 4}
    for row in rows:
        n, ranks = int(row["weights"]), int(row["ranks"])
        found = cost("lawa", "host", Run(params=n, ranks=ranks, window=int(row["window"])), Machine())
        paper = found.host - 4 * n + ranks * found.device  # no spare there; raw weights of each rank
        assert float(row["value"]) == pytest.approx(paper, rel=0.05)


def test_within_a_quarter_of_what_a_cpu_took():
    """From 1e7 weights on: one million stays in the cache. Means of short windows: of long ones docs/scale.md tells."""
    machine = Machine(device_gbs=56)
    with open("docs/results/engine/growth.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["varied"] == "weights" and int(row["weights"]) >= 10**7]
    assert len(rows) == 12
    for row in rows:
        run = Run(params=int(row["weights"]), window=int(row["window"]))
        ema, lawa = (cost(kind, "device", run, machine) for kind in ("ema", "lawa"))
        paper = {"EMA update": ema.update, "snapshot": lawa.update, "mean, swap": lawa.swap}[row["action"]]
        assert 0.75 < paper / float(row["value"]) < 1.25, row


def test_sizes_of_weights_and_their_types():
    short = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
    assert {name: getattr(torch, short.get(name, name)).itemsize for name in BYTES} == BYTES
    for text, number in (("7", 7), ("7e2", 7e2), ("7k", 7e3), ("1.5M", 1.5e6), ("7B", 7e9), ("7g", 7e9), ("7T", 7e12)):
        assert _count(text) == number
    for text in ("", "B", "7X", "nan", "seven"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"must be a number of weights, .* not {text}$"):
            _count(text)


def table(names, seconds, machine, ranks) -> list[str]:
    lines = []
    for name in names:
        workload = WORKLOADS[name]
        run = Run(params=workload.parameters, ranks=ranks, step_seconds=seconds(workload) / workload.step_hint)
        found = places(run, machine)
        cells = [f"{workload.parameters / 1e6:.3g} M", f"{1e3 * run.step_seconds:.0f}"]
        for pair in (("lawa", "device"), ("lawa", "host"), ("ema", "device")):
            one = found[pair]
            where = one.device if pair[1] == "device" else one.host
            cells.append(f"{where / 1e9:.3g} GB, {100 * one.share:.3f} %, {one.swap:.2g} s{' *' if one.limit else ''}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


A100S = Machine(ranks_per_node=4, device_gb=10, host_gb=300, device_gbs=1300, host_gbs=40, pcie_gbs=20)
V100S = Machine(ranks_per_node=8, device_gb=4, host_gb=200, device_gbs=750, host_gbs=40, pcie_gbs=10)


def test_the_tables_of_the_docs_are_these_sums():
    text = Path("docs/scale.md").read_text()
    names = [name for name in WORKLOADS if name != "mnist"]
    assert len(names) == 9
    scored = [name for name in names if WORKLOADS[name].v100_seconds]
    for line in [
        *table(names, lambda w: w.a100_seconds, A100S, 4), *table(scored, lambda w: w.v100_seconds, V100S, 8),
    ]:  # fmt: skip
        assert line in text, line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--params=0", "--step-seconds=1"], "error: params must be >= 1, not 0"),
        (["--params=inf", "--step-seconds=1"], "error: params must be >= 1, not inf"),
        (["--params=1e9", "--step_seconds=1", "--host_gb=inf"], "error: host_gb must be > 0, not inf"),
        (["--params=1e9", "--step_seconds=0"], "error: step_seconds must be > 0, not 0"),
        (["--params=1e9", "--step_seconds=1", "--ranks=6", "--shards=4"],
         "error: shards must divide ranks: 6 ranks are no multiple of 4 shards"),
        (["--params=1e9", "--step_seconds=1", "--pcie_gbs=-1"], "error: pcie_gbs must be > 0, not -1"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_named(capsys, arguments, said):
    assert command(capsys, "plan", *arguments).strip() == said


def test_the_page_shows_what_the_command_says(capsys):
    """Also by the defaults of what its command does not name."""
    page = Path("docs/scale.md").read_text().partition("\n## ")[0]
    given = re.search(r"^    weight-averaging (.*)$", page, re.M)[1]
    shown = page.partition(given)[2].partition("\nThe command adds up")[0]
    assert command(capsys, *given.split()).split() == shown.split()
    defaults = re.findall(r"\(default: ([\d.]+)\)", " ".join(command(capsys, "plan", "--help").split()))
    assert defaults == ["1", "1", "0", "1", "20", "64", "8", "10", "500", "2900", "48", "25", "1", "25"]


def test_the_command_says_where_what_fits_and_what_breaks(capsys):
    said = command(
        capsys, "plan", "--params=7e9", "--dtype=bf16", "--ranks=64", "--shards=8", "--step_seconds=1.2",
        "--host_gb=500", "--device-gb=6",
    )  # fmt: skip
    assert re.search(r"LAWA, device .* device memory in training: 73.5 of 6 GB; put it on the host", said)
    assert re.search(r"LAWA, host .* 588 GB .* host memory: 588 of 500 GB a node; take fewer snapshots", said)
    assert re.search(r"EMA, device +3.5 GB +5.25 GB .* fits", said)
    small = command(capsys, "plan", "--params=1e9", "--dtype=bf16", "--step-seconds=1", "--device-gb=5", "--host-gb=7")
    assert "1e+09 weights in bf16, 1 rank; LAWA of 20, every 64 updates\n" in small
    assert re.search(r"LAWA, host .* device memory in an evaluation: 6 of 5 GB; shard the model\n", small)
    assert re.search(r"EMA, device .* device memory in an evaluation: 6 of 5 GB; put it on the host\n", small)
    smaller = command(
        capsys, "plan", "--params=2e9", "--ranks=2", "--shards=2", "--step-seconds=1", "--device-gb=3", "--interval=1"
    )
    assert "2 ranks, 2 shards; LAWA of 20, every update\n" in smaller
    assert re.search(r"EMA, host .* device memory in training: 4 of 3 GB; more shards\n", smaller)
    little = command(capsys, "plan", "--params=1e9", "--step-seconds=1", "--host-gb=7")
    assert re.search(r"EMA, host .* host memory: 8 of 7 GB a node; average from disk\n", little)
    full = command(capsys, "plan", "--params=1e9", "--step-seconds=1", "--device-gb=8", "--host-gb=8")
    assert re.search(r"EMA, device +4 GB +8 GB .* fits\n", full)
    assert re.search(r"EMA, host .* 8 GB .* fits\n", full)
    slow = command(capsys, "plan", "--params=539e6", "--interval=1", "--step-seconds=.1", "--pcie-gbs=12", "--ranks=4")
    assert "a copy takes 0.18 s, longer than 1 updates; 2 would hide it" in slow
