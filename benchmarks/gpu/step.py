"""A training step of the language model with averaging and without, and what its copies to the host hide under."""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import machine
from benchmarks.gpu.sizes import Scale
from benchmarks.timing import device, synchronize
from miniperf.workloads.finewebedu_lm.model import token_losses
from weight_averaging.torch import EMA, LAWA, Averager

EVERY = {"LAWA, host, interval 64": 64, "EMA, interval 64": 64, "LAWA, host, interval 1": 1, "EMA, interval 1": 1}
Row = tuple[str, float, float]  # what runs, from when to when, in milliseconds


def often(turn: int) -> dict[str, int]:
    """The intervals, where a turn is shorter."""
    return {name: min(every, turn) for name, every in EVERY.items()}


class Training:
    """The model, AdamW and batches of noise, in bf16 autocast on CUDA."""

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self.model = machine.many_small(scale.model)
        self.forward: Callable[..., torch.Tensor] = self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        shape = (scale.batch, scale.length + 1)
        self.tokens = torch.randint(scale.model.vocabulary, shape, device=device())

    def step(self) -> None:
        self.optimizer.zero_grad()
        with torch.autocast(device().type, torch.bfloat16, enabled=machine.ON_CUDA):
            logits = self.forward(self.tokens[:, :-1])
        token_losses(logits.float(), self.tokens[:, 1:]).mean().backward()
        self.optimizer.step()

    def turn(self, averager: Averager | None, steps: int) -> float:
        """Seconds a step."""
        synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
            if averager is not None:
                averager.update(averager.step + 1)  # it sees its own turns alone
        synchronize()
        return (time.perf_counter() - start) / steps

    def averagers(self, turn: int) -> dict[str, Averager]:
        """One of each that is compared; an interval of 64 means once a turn."""
        options: dict[str, Any] = {"window": self.scale.window, "placement": "host"}
        made: dict[str, Averager] = {
            name: LAWA(self.model, interval=every, **options)
            if name.startswith("LAWA")
            else EMA(self.model, interval=every, decay=0.9)
            for name, every in often(turn).items()
        }
        return made


def step(scale: Scale, compiled: bool = False) -> str:
    """Ratios of turns of steps, each to the turns before and after it."""
    training = Training(scale)
    if compiled:
        training.forward = torch.compile(training.model)
    averagers = training.averagers(scale.turn)
    lengths = {name: max(scale.turn // 4, every) for name, every in often(scale.turn).items()}
    for averager in [None, *averagers.values()]:
        training.turn(averager, 3)
    plain: list[float] = []
    ratios: dict[str, list[float]] = {name: [] for name in averagers}
    for number in range(scale.turns):
        for name in list(averagers)[:: 1 if number % 2 else -1]:
            # Of one length: the ends of a turn, where the device waits, count alike.
            before, took, after = (training.turn(a, lengths[name]) for a in (None, averagers[name], None))
            ratios[name].append(2 * took / (before + after))
            plain += [before, after]
    tokens, seconds = scale.batch * scale.length, statistics.median(plain)
    how = "torch.compile, " if compiled else ""
    note = (
        f"The language model, {how}AdamW (fused), {scale.batch} x {scale.length} tokens: {1e3 * seconds:.2f} ms a step "
        f"without averaging, {tokens / seconds:,.0f} tokens/s. {scale.turns} turns of {scale.turn} steps, at intervals "
        f"of 1 of {scale.turn // 4}, each between two turns without averaging; the ratio to their mean. LAWA: "
        f"{scale.window} snapshots in pinned host memory. Goal: <= 1.005 at an interval of 64."
    )
    rows = [[name, *(f"{value:.4f}" for value in (statistics.median(r), min(r), max(r)))] for name, r in ratios.items()]
    return note + "\n\n" + machine.table(["", "step / step without, median", "least", "most"], rows)


def overlap(scale: Scale, picture: Path) -> str:
    """Copy and computing side by side, from a profile of some steps around a snapshot."""
    training = Training(scale)
    lawa = LAWA(training.model, interval=4, window=scale.window, placement="host")
    training.turn(lawa, 12)
    rows = _profiled(training, lawa)
    copies = [(start, stop) for kind, start, stop in rows if kind == "copy"]
    computing = [(start, stop) for kind, start, stop in rows if kind == "compute"]
    _draw(rows, picture)
    text = f"![Copies and kernels along some training steps]({picture.name})"
    if not copies:
        return text + "\n\nNo copies: averages and model are in the same memory."
    total = sum(stop - start for start, stop in copies)
    hidden = sum(_covered(copy, computing) for copy in copies) / total
    later = (computing[-1][1] - computing[0][0]) / _STEPS  # the same stretch of the next step, where nothing is copied
    without = sum(_covered((start + later, stop + later), computing) for start, stop in copies) / total
    nbytes = 4 * machine.numel(training.model) * len(copies)
    return (
        f"A snapshot after every fourth of {_STEPS} steps, its copy to pinned host memory on a stream of its own: "
        f"{len(copies)} copies of {total / len(copies):.1f} ms, {nbytes / total / 1e6:.0f} GB/s; "
        f"**{100 * hidden:.0f} % of that time kernels of the training run too**, of as long a time one step later, "
        f"without a copy, {100 * without:.0f} %.\n\n{text}"
    )


_STEPS = 11  # the last snapshot has steps after it


def _profiled(training: Training, lawa: LAWA) -> list[Row]:
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CUDA] if machine.ON_CUDA else [ProfilerActivity.CPU]
    with profile(activities=kinds) as profiled:
        training.turn(lawa, _STEPS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiled.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    rows: list[Row] = []
    large = 2 * training.model.embedding.weight.numel()  # bytes: what is not a snapshot is far smaller
    for event in events:
        category, arguments = event.get("cat"), event.get("args", {})
        start, stop = event.get("ts", 0) / 1e3, (event.get("ts", 0) + event.get("dur", 0)) / 1e3
        if category == "kernel" or (not machine.ON_CUDA and category == "cpu_op"):
            rows.append(("compute", start, stop))
        elif category == "gpu_memcpy" and "DtoH" in event["name"] and arguments.get("bytes", 0) > large:
            rows.append(("copy", start, stop))
    first = min(start for _, start, _ in rows)
    return sorted((kind, start - first, stop - first) for kind, start, stop in rows)


def _covered(span: tuple[float, float], others: list[tuple[float, float]]) -> float:
    """Of a span the length under the union of others, sorted by their start."""
    covered, reached = 0.0, span[0]
    for start, stop in others:
        low, high = max(start, reached), min(stop, span[1])
        if high > low:
            covered += high - low
            reached = high
    return covered


def _draw(rows: list[Row], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.2), layout="constrained")
    axes = figure.subplots()
    for y, (kind, colour) in enumerate((("compute", "#0072B2"), ("copy", "#E69F00"))):  # Okabe and Ito's
        axes.broken_barh([(a, b - a) for k, a, b in rows if k == kind], (y - 0.35, 0.7), facecolors=colour)
    axes.set_yticks([0, 1], ["kernels of training", "snapshot to host"])
    axes.set(xlabel="time (ms)", title="Copies of snapshots while training continues", ylim=(-0.6, 1.6))
    figure.savefig(path, dpi=130)
