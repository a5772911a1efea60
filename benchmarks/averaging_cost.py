"""The cost of averaging beside other libraries and the memory-traffic limit.

    python -m benchmarks.averaging_cost

Every row is a ratio to the time of one flat kernel that moves the same bytes in the same run: `copy_` (read and
write), `lerp_` (read two, write one); a mean and its swap, to the time of reading the window at that bandwidth. Above 1
the limit is missed by that factor; a little below 1 is possible, since our passes go block by block and a flat kernel
does not. The limits do not count the check for NaN and infinity, one more read of the weights: the rows `unchecked` are
those with `check_finite=False`.
"""

import argparse
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.timing import device, machine, medians
from weight_averaging.torch import EMA, LAWA

WINDOW = 20


def model_of(numel: int, width: int = 1024) -> nn.Module:
    """A model with tensors of `width` to 4 width^2 elements that add up to at least `numel`, like a Transformer's."""
    layers = []
    count = 0
    while count < numel:
        block = nn.ModuleList([nn.Linear(width, 4 * width), nn.Linear(4 * width, width), nn.LayerNorm(width)])
        layers.append(block)
        count += sum(p.numel() for p in block.parameters())
    return nn.ModuleList([*layers]).to(device())


def measure(model: nn.Module, rounds: int) -> list[tuple[str, float, float]]:
    """Rows (name, seconds, ratio to its limit)."""
    count = sum(p.numel() for p in model.parameters())
    a, b = (torch.randn(count, device=device()) for _ in range(2))
    step = iter(range(1, 1 << 60))
    ema = EMA(model, decay=0.9)
    unchecked = {
        "EMA.update, unchecked": EMA(model, decay=0.9, check_finite=False),
        "LAWA.update, unchecked": LAWA(model, interval=1, window=1, check_finite=False),
    }
    lawa = LAWA(model, interval=1, window=WINDOW)
    for _ in range(WINDOW + 1):
        lawa.update(next(step))
    swapping = EMA(model, decay=0.9)
    swapping.update(1)
    ema.update(next(step))

    def swap() -> None:
        swapping.swap_in()
        swapping.swap_out()

    def mean() -> None:
        for block in lawa._weights.blocks:  # the mean alone, without writing it into the model
            lawa._shown.average(block, lawa._selected)

    actions: dict[str, Callable[[], object]] = {
        "copy_": lambda: b.copy_(a),
        "lerp_": lambda: b.lerp_(a, 0.1),
        "EMA.update": lambda: ema.update(next(step)),
        "LAWA.update": lambda: lawa.update(next(step)),
        **{name: lambda averager=averager: averager.update(next(step)) for name, averager in unchecked.items()},
        f"LAWA mean of {WINDOW}": mean,
        f"swap in, LAWA of {WINDOW}": lawa.adopt,  # the next round starts from the average, which costs the same
        "swap in + out, EMA": swap,
        **peers(model),
    }
    seconds = medians(actions, rounds)
    copy, lerp = seconds["copy_"], seconds["lerp_"]
    limits = {  # bytes a parameter over those of the flat kernel
        "LAWA.update": copy,
        "LAWA.update, unchecked": copy,
        f"LAWA mean of {WINDOW}": copy * WINDOW / 2,  # its reads
        f"swap in, LAWA of {WINDOW}": copy * WINDOW / 2,
        "swap in + out, EMA": 3 * copy,  # raw weights out, average in, raw weights back
        "copy_": copy,
    }
    return [(name, value, value / limits.get(name, lerp)) for name, value in seconds.items()]


def look(model: nn.Module, rounds: int) -> tuple[float, float]:
    """Seconds that a look at the model takes before each snapshot, and its share of a snapshot (LAWA, unchecked)."""
    lawa = LAWA(model, interval=1, window=1, check_finite=False)
    step = iter(range(1, 1 << 60))
    seconds = medians({"look": lawa._look, "snapshot": lambda: lawa.update(next(step))}, rounds)
    return seconds["look"], seconds["look"] / seconds["snapshot"]


def peers(model: nn.Module) -> dict:
    """The same EMA update by other libraries, where they are installed."""
    actions = {}
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    actions["torch swa_utils EMA"] = lambda: ema.update_parameters(model)
    swa = AveragedModel(model)
    actions["torch swa_utils SWA"] = lambda: swa.update_parameters(model)
    try:
        from torch_ema import ExponentialMovingAverage

        other = ExponentialMovingAverage(model.parameters(), decay=0.9)
        actions["torch-ema"] = lambda: other.update()
    except ImportError:
        pass
    try:
        from ema_pytorch import EMA as PeerEMA

        peer = PeerEMA(model, beta=0.9, update_every=1, update_after_step=0)
        actions["ema-pytorch"] = lambda: peer.update()
    except ImportError:
        pass
    return actions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--numel", type=int, default=50_000_000, help="parameters of the model (default: 5e7; needs 120 bytes each)"
    )
    parser.add_argument("--rounds", type=int, default=9, help="timings of each action; the median counts (default: 9)")
    arguments = parser.parse_args()
    print(f"{machine()}; {arguments.numel:.3g} parameters, median of {arguments.rounds}\n")
    print("| action | ms | ratio to its limit |\n|---|---|---|")
    for name, seconds, ratio in measure(model_of(arguments.numel), arguments.rounds):
        print(f"| {name} | {1e3 * seconds:.1f} | {ratio:.2f} |")
    small = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 2)).to(
        device()
    )
    print("\n| a look at the model, before each snapshot | us | share of a snapshot |\n|---|---|---|")
    for model, rounds in ((small, 1000), (model_of(arguments.numel), arguments.rounds)):
        seconds, share = look(model, rounds)
        print(f"| {sum(p.numel() for p in model.parameters()):,} weights | {1e6 * seconds:.0f} | {share:.4f} |")


if __name__ == "__main__":
    main()
