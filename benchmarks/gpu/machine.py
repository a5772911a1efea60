"""What the measurements share: the machine, models, tables."""

import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from benchmarks.timing import device, device_name, medians, synchronize
from miniperf.workloads.finewebedu_lm.model import Decoder
from miniperf.workloads.finewebedu_lm.sizes import Sizes

ON_CUDA = torch.cuda.is_available()


def slug() -> str:
    """The device's name as a file's."""
    return re.sub(r"[^a-z0-9]+", "_", device_name().lower()).strip("_")


def described() -> str:
    """One line of all that the numbers depend on."""
    parts = [f"**{device_name()}**"]
    if ON_CUDA:
        try:
            query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
        except (OSError, subprocess.CalledProcessError, IndexError):
            driver = "unknown"
        parts += [f"driver {driver}", f"CUDA {torch.version.cuda}"]
    parts += [f"{torch.get_num_threads()} CPU threads", f"torch {torch.__version__}"]
    return "; ".join([*parts, f"Python {platform.python_version()}"])


def few_large(numel: int) -> nn.Module:
    """Eight tensors."""
    return nn.ParameterList([nn.Parameter(torch.randn(numel // 8, device=device())) for _ in range(8)])


def many_small(sizes: Sizes) -> nn.Module:
    """A language model's."""
    torch.manual_seed(0)
    return Decoder(sizes).to(device())


def numel(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def device_seconds(actions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds that the device is busy with each action, taken in turns; without CUDA as `medians`.

    It is given something to do first, so that all that an action launches waits there already.
    """
    if not ON_CUDA:
        return medians(actions, rounds)
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds + 1):  # the first warms up
        for name, action in actions.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(30_000_000)  # cycles: about 17 ms
            begin.record()
            action()
            end.record()
            synchronize()
            times[name].append(begin.elapsed_time(end) / 1e3)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def host_seconds(action: Callable[[], object], rounds: int) -> float:
    """Median seconds until a call returns, whatever the device still has to do."""
    times = []
    for _ in range(rounds):
        synchronize()
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    synchronize()
    return statistics.median(times)


def free() -> None:
    """Give back what the last measurement held."""
    if ON_CUDA:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)
