"""Updates, swaps and memory of the averagers, beside the device's bandwidth and other libraries."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks import nadamw_step
from benchmarks.averaging_cost import peers
from benchmarks.gpu import machine
from benchmarks.gpu.sizes import Scale
from benchmarks.timing import device, medians, resident, synchronize
from weight_averaging.placement import free_host_bytes
from weight_averaging.torch import EMA, LAWA, Averager
from weight_averaging.torch.model import blocks

GB = 1e9


def flat_kernels(numel: int) -> dict[str, Callable[[], object]]:
    """What the limits are measured with: 8 bytes a weight and 12."""
    a, b = (torch.randn(numel, device=device()) for _ in range(2))
    return {"copy_ (flat)": lambda: b.copy_(a), "lerp_ (flat)": lambda: b.lerp_(a, 0.1)}


def actions_of(model: nn.Module) -> dict[str, Callable[[], object]]:
    """One update of each averager and of other libraries'."""
    step = iter(range(1, 1 << 60))
    made: dict[str, Averager] = {
        "EMA": EMA(model, decay=0.9),
        "EMA, unchecked": EMA(model, decay=0.9, check_finite=False),
        "LAWA, device": LAWA(model, interval=1, window=2, placement="device"),
        "LAWA, device, unchecked": LAWA(model, interval=1, window=2, placement="device", check_finite=False),
    }
    actions: dict[str, Callable[[], object]] = {
        name: lambda averager=averager: averager.update(next(step))  # type: ignore[misc]
        for name, averager in made.items()
    }
    live = [p.detach() for p in model.parameters()]
    copies = [p.clone() for p in live]
    actions["torch._foreach_lerp_"] = lambda: torch._foreach_lerp_(copies, live, 0.1)
    actions |= {name: action for name, action in peers(model).items() if "SWA" not in name}
    for action in actions.values():  # the first snapshots are copied, windows fill
        for _ in range(3):
            action()
    return actions


def updates(scale: Scale) -> str:
    """Milliseconds, ratios to the limit and microseconds until the call returns."""
    rows = []
    for label, model in (
        ("few large", machine.few_large(scale.large)),
        ("language model", machine.many_small(scale.model)),
    ):
        flat = flat_kernels(machine.numel(model))
        actions = actions_of(model)
        seconds = machine.device_seconds({**flat, **actions}, scale.rounds)
        copy, lerp = seconds["copy_ (flat)"], seconds["lerp_ (flat)"]
        for name, value in seconds.items():
            nbytes = 8 if name.startswith(("copy_", "LAWA")) else 12
            limit = copy * nbytes / 8
            own = lerp if nbytes == 12 else copy
            host = 1e6 * machine.host_seconds({**flat, **actions}[name], scale.rounds)
            rate = nbytes * machine.numel(model) / value / GB
            columns = [f"{1e3 * value:.3f}", f"{rate:.0f}", f"{value / limit:.2f}", f"{value / own:.2f}", f"{host:.0f}"]
            rows.append([f"{label}, {machine.numel(model):,}", name, *columns])
        del actions, flat, model
        machine.free()
    note = (
        "An EMA update moves 12 bytes a weight, a snapshot (LAWA) 8. `ms`: how long the device is busy. `/ copy`: to "
        "the time in which a flat `copy_` moves as many bytes. `/ kernel`: to a flat kernel of the same kind (`lerp_`, "
        "`copy_`). The check for NaN and infinity reads the weights once more: 16 and 12 bytes. `returns`: when the "
        "call returns, with the device idle before. Goal: EMA <= 1.15."
    )
    return note + "\n\n" + machine.table(["model", "update", "ms", "GB/s", "/ copy", "/ kernel", "returns, us"], rows)


def kernels(scale: Scale) -> str:
    """What one update launches."""
    from torch.profiler import ProfilerActivity, profile

    model = machine.many_small(scale.model)
    kind = ProfilerActivity.CUDA if machine.ON_CUDA else ProfilerActivity.CPU
    rows = []
    for name, action in actions_of(model).items():
        synchronize()
        with profile(activities=[kind]) as profiled:
            action()
            synchronize()
        events = [event.name for event in profiled.events()]
        if machine.ON_CUDA:  # not the calls of the runtime
            events = [e for e in events if not e.startswith("cuda")]
        else:
            events = [e for e in events if e.startswith("aten::")]
        rows.append([name, len(events)])
    what = "kernels and copies" if machine.ON_CUDA else "operators"
    return machine.table(["update of the language model", what], rows)


def block_sizes(scale: Scale) -> str:
    """Why blocks are as large as they are."""
    place = "ACCELERATOR_BLOCK" if machine.ON_CUDA else "CPU_BLOCK"
    before = getattr(blocks, place)
    rows = []
    model = machine.many_small(scale.model)
    try:
        for power in (20, 22, 24, 26) if machine.ON_CUDA else (12, 14):
            setattr(blocks, place, 1 << power)
            ema = EMA(model, decay=0.9)
            plain = EMA(model, decay=0.9, check_finite=False)
            lawa = LAWA(model, interval=1, window=scale.window, placement="device")
            step = iter(range(1, 1 << 60))
            for _ in range(scale.window + 1):
                lawa.update(next(step))

            def mean(lawa: LAWA = lawa) -> None:
                for block in lawa._weights.blocks:
                    lawa._shown.average(block, lawa._selected)

            seconds = machine.device_seconds(
                {
                    "ema": lambda ema=ema, step=step: ema.update(next(step)),  # type: ignore[misc]
                    "plain": lambda plain=plain, step=step: plain.update(next(step)),  # type: ignore[misc]
                    "lawa": lambda lawa=lawa, step=step: lawa.update(next(step)),  # type: ignore[misc]
                    "mean": mean,
                },
                scale.rounds,
            )
            rows.append([f"2^{power}", *(f"{1e3 * value:.3f}" for value in seconds.values())])
            del ema, plain, lawa
            machine.free()
    finally:
        setattr(blocks, place, before)
    head = ["elements a block", "EMA, ms", "EMA, unchecked, ms", "LAWA, ms", f"mean of {scale.window}, ms"]
    return f"Of the language model; the library's is 2^{before.bit_length() - 1}.\n\n" + machine.table(head, rows)


def swap(scale: Scale) -> str:
    """Averages into the model and out again."""
    model = machine.many_small(scale.model)
    count = machine.numel(model)
    step = iter(range(1, 1 << 60))
    ema = EMA(model, decay=0.9)
    averagers = {
        f"LAWA of {scale.window}, {place}": LAWA(model, interval=1, window=scale.window, placement=place)
        for place in ("device", "host")
    }
    for _ in range(scale.window + 1):
        number = next(step)
        for averager in (ema, *averagers.values()):
            averager.update(number)

    def in_and_out(averager: Averager) -> Callable[[], None]:
        def both() -> None:
            averager.swap_in()
            averager.swap_out()

        return both

    host = torch.empty(count, pin_memory=machine.ON_CUDA)
    there = torch.empty(count, device=device())
    actions = {
        **flat_kernels(count),
        "host to device (pinned)": lambda: there.copy_(host, non_blocking=True),
        "device to host (pinned)": lambda: host.copy_(there, non_blocking=True),
        "EMA, device": in_and_out(ema),
        **{name: in_and_out(averager) for name, averager in averagers.items()},
    }
    seconds = medians(actions, max(3, scale.rounds // 3))
    copy, link = seconds["copy_ (flat)"], seconds["host to device (pinned)"]
    limits = {
        "EMA, device": ("three copies", 3 * copy),
        f"LAWA of {scale.window}, device": (f"read {scale.window}, three copies", (scale.window / 2 + 3) * copy),
        f"LAWA of {scale.window}, host": (f"{scale.window} copies host to device", scale.window * link),
    }
    rows = []
    for name, value in seconds.items():
        moved = {"copy_ (flat)": 8, "lerp_ (flat)": 12}.get(name, 4) * count / value / GB
        rate = f"{moved:.0f} GB/s" if name not in limits else ""
        text, limit = limits.get(name, ("", value))
        rows.append([name, f"{1e3 * value:.2f}", rate, text, f"{value / limit:.2f}" if text else ""])
    note = f"Swap in and out, {count:,} weights. The mean of a window in host memory is computed by the processor."
    return note + "\n\n" + machine.table(["action", "ms", "", "limit", "ratio"], rows)


def memory(scale: Scale) -> str:
    """Peak device memory beside the model, and host memory, in models (float32)."""
    promised = {  # docs/engine.md: training, evaluation, host
        ("EMA", "device"): (1, 2, 0),
        ("EMA", "host"): (1, 1, 2),
        ("LAWA", "device"): (scale.window + 1, scale.window + 2, 0),
        ("LAWA", "host"): (1, 1, scale.window + 1),
    }
    rows = []
    for (kind, place), expected in promised.items():
        machine.free()
        model = machine.many_small(scale.model)
        one = 4 * machine.numel(model)
        synchronize()
        start, available = _allocated(), free_host_bytes()
        averager: Averager
        if kind == "EMA":
            averager = EMA(model, decay=0.9, placement=place)
        else:
            averager = LAWA(model, interval=1, window=scale.window, placement=place)
        _forget_peak()
        for step in range(1, scale.window + 3):
            averager.update(step)
        synchronize()
        training = (_peak() - start) / one
        held = sum(v.numel() for track in averager._tracks for v in _vectors(track) if v.device.type == "cpu")
        host = (available - free_host_bytes()) / one
        _forget_peak()
        averager.swap_in()
        averager.swap_out()
        evaluation = (_peak() - start) / one
        rows.append(
            [f"{kind}, {place}", f"{training:.2f}", expected[0], f"{evaluation:.2f}", expected[1],
             f"{4 * held / one:.2f}", expected[2], f"{host:.2f}"]
        )  # fmt: skip
        del averager, model
    head = [
        "", "training", "promised", "evaluation", "promised", "host vectors", "promised", "less host memory available",
    ]  # fmt: skip
    note = (
        "Peaks on the device beyond the language model itself, and what is in host memory, in models of "
        f"{one / GB:.2f} GB; promised: [engine](../../engine.md). The last column is the machine's, with other "
        "processes and libraries."
    )
    return note + "\n\n" + machine.table(head, rows)


def _vectors(track: Any) -> list[torch.Tensor]:
    copied = getattr(track, "_copied", None)
    return [*track.slots(), *([copied] if copied is not None else [])]


def _allocated() -> int:
    return torch.cuda.memory_allocated() if machine.ON_CUDA else resident()


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if machine.ON_CUDA else resident()


def _forget_peak() -> None:
    if machine.ON_CUDA:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()


def growth(scale: Scale) -> str:
    """Memory after many swaps."""
    rows = []
    for kind in ("EMA, device", "LAWA, host"):
        model = machine.few_large(max(8, scale.large // 500))
        averager = (
            EMA(model, decay=0.9) if kind.startswith("EMA") else LAWA(model, interval=1, window=3, placement="host")
        )
        for step in range(1, 6):
            averager.update(step)
            averager.swap_in()
            averager.swap_out()
        synchronize()
        before = (_allocated(), torch.cuda.memory_reserved() if machine.ON_CUDA else 0, resident())
        for step in range(6, 6 + scale.swaps):
            averager.update(step)
            averager.swap_in()
            averager.swap_out()
        synchronize()
        after = (_allocated(), torch.cuda.memory_reserved() if machine.ON_CUDA else 0, resident())
        rows.append([kind, *(f"{(b - a) / 1e6:.1f}" for a, b in zip(before, after, strict=True))])
        del averager, model
    head = ["", "device memory, MB", "reserved, MB", "resident in host memory, MB"]
    return f"More after {scale.swaps} updates with a swap in and out each:\n\n" + machine.table(head, rows)


def criteo(scale: Scale) -> str:
    """The largest window of the benchmark, in host memory."""
    need = 4 * scale.criteo * (scale.window + 1)
    if need > 0.9 * free_host_bytes():
        return f"left out: a window of {need / GB:.0f} GB, where {free_host_bytes() / GB:.0f} GB are free"
    model = machine.few_large(scale.criteo)
    start = time.perf_counter()
    available = free_host_bytes()
    lawa = LAWA(model, interval=1, window=scale.window, placement="host")
    reserve = time.perf_counter() - start
    host, whole = [], []
    for step in range(1, scale.window + 3):
        synchronize()
        start = time.perf_counter()
        lawa.update(step)
        host.append(time.perf_counter() - start)
        synchronize()
        whole.append(time.perf_counter() - start)
    less = available - free_host_bytes()
    start = time.perf_counter()
    lawa.swap_in()
    synchronize()
    swapped = time.perf_counter() - start
    start = time.perf_counter()
    lawa.swap_out()
    synchronize()
    out = time.perf_counter() - start
    middle = len(host) // 2
    rows = [
        ["reserving the window, s", f"{reserve:.2f}"],
        ["less host memory available, GB", f"{less / GB:.1f}"],
        ["its vectors, GB", f"{need / GB:.1f}"],
        ["update returns after, ms", f"{1e3 * sorted(host)[middle]:.2f}"],
        ["its copy is complete after, ms", f"{1e3 * sorted(whole)[middle]:.1f}"],
        ["swap in (mean of the window), s", f"{swapped:.2f}"],
        ["swap out, ms", f"{1e3 * out:.2f}"],
    ]
    return f"{scale.criteo:,} weights, {scale.window} snapshots in pinned host memory.\n\n" + machine.table(
        ["", ""], rows
    )


def nadamw(scale: Scale) -> str:
    """The submissions' NadamW."""
    shapes = nadamw_step.SHAPES
    if scale.large < 10**6:
        shapes = {name: [size // 10_000 for size in sizes] for name, sizes in shapes.items()}
    return machine.table(nadamw_step.HEAD, nadamw_step.rows(shapes))
