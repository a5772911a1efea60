"""The cost of averaging beside other libraries and the memory-traffic limit.

    python -m benchmarks.averaging_cost

Every row is a ratio to the time of one flat kernel that moves the same bytes in the same run: `copy_` (read and
write), `lerp_` (read two, write one); a mean and its swap, to the time of reading the window at that bandwidth. Above 1
the limit is missed by that factor; a little below 1 is possible, since our passes go block by block and a flat kernel
does not. The limits do not count the check for NaN and infinity, one more read of the weights: the rows `unchecked` are
those with `check_finite=False`.

On a machine with other work take OMP_NUM_THREADS=1: of one thread the processor's time counts. `--against=FOLDER` times
the averagers of another working tree (`git worktree add FOLDER COMMIT`) in the same rounds.
"""

import argparse
import importlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from benchmarks.timing import device, machine, medians
from weight_averaging import torch as here
from weight_averaging.torch import LAWA

WINDOW = 20
Actions = dict[str, Callable[[], object]]


def earlier(folder: str) -> ModuleType:
    """`weight_averaging.torch` of another working tree, beside this one's.

    Raises:
        ValueError: the folder has none, and this one's would be taken.
    """
    if not Path(folder, "weight_averaging", "torch").is_dir():
        raise ValueError(f"--against={folder} is no working tree: it has no weight_averaging/torch")
    ours = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "weight_averaging"}
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("weight_averaging.torch")
    finally:
        sys.path.remove(folder)
        for name in [name for name in sys.modules if name.split(".")[0] == "weight_averaging"]:
            del sys.modules[name]
        sys.modules.update(ours)


def clock() -> Callable[[], float]:
    """Of one thread on a CPU the time that it ran, else the time that passed."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.thread_time if alone else time.perf_counter


def model_of(numel: int, width: int = 1024) -> nn.Module:
    """A model with tensors of `width` to 4 width^2 elements that add up to at least `numel`, like a Transformer's."""
    layers = []
    count = 0
    while count < numel:
        block = nn.ModuleList([nn.Linear(width, 4 * width), nn.Linear(4 * width, width), nn.LayerNorm(width)])
        layers.append(block)
        count += sum(p.numel() for p in block.parameters())
    return nn.ModuleList([*layers]).to(device())


def updates(model: nn.Module, library: ModuleType, steps: Iterator[int]) -> Actions:
    """Those of a library."""
    made = {
        "EMA.update": library.EMA(model, decay=0.9),
        "LAWA.update": library.LAWA(model, interval=1, window=2),
        "EMA.update, unchecked": library.EMA(model, decay=0.9, check_finite=False),
        "LAWA.update, unchecked": library.LAWA(model, interval=1, window=1, check_finite=False),
    }
    return {name: lambda averager=averager: averager.update(next(steps)) for name, averager in made.items()}  # type: ignore[misc]


def measure(model: nn.Module, rounds: int, libraries: dict[str, ModuleType]) -> list[tuple[str, float, float]]:
    """Rows (name, seconds, ratio to its limit).

    Args:
        libraries: by what is put behind the names of their rows.
    """
    count = sum(p.numel() for p in model.parameters())
    a, b = (torch.randn(count, device=device()) for _ in range(2))
    step = itertools.count(1)
    compared = {
        name + of: action for of, library in libraries.items() for name, action in updates(model, library, step).items()
    }
    lawa = LAWA(model, interval=1, window=WINDOW)
    for _ in range(WINDOW + 1):
        lawa.update(next(step))
    swapping = here.EMA(model, decay=0.9)
    swapping.update(1)

    def swap() -> None:
        swapping.swap_in()
        swapping.swap_out()

    def mean() -> None:
        for block in lawa._weights.blocks:  # the mean alone, without writing it into the model
            lawa._shown.average(block, lawa._selected)

    actions: Actions = {
        "copy_": lambda: b.copy_(a),
        "lerp_": lambda: b.lerp_(a, 0.1),
        **compared,
        f"LAWA mean of {WINDOW}": mean,
        f"swap in, LAWA of {WINDOW}": lawa.adopt,  # the next round starts from the average, which costs the same
        "swap in + out, EMA": swap,
        **peers(model),
    }
    for action in compared.values():  # the first snapshots are copied
        action()
    seconds = medians(actions, rounds, clock())
    copy, lerp = seconds["copy_"], seconds["lerp_"]
    limits = {  # bytes a parameter over those of the flat kernel
        **{name: copy for name in compared if name.startswith("LAWA")},
        f"LAWA mean of {WINDOW}": copy * WINDOW / 2,  # its reads
        f"swap in, LAWA of {WINDOW}": copy * WINDOW / 2,
        "swap in + out, EMA": 3 * copy,  # raw weights out, average in, raw weights back
        "copy_": copy,
    }
    return [(name, value, value / limits.get(name, lerp)) for name, value in seconds.items()]


def small(rounds: int, libraries: dict[str, ModuleType], calls: int = 200) -> dict[str, float]:
    """Seconds of a call for a model of 482 weights, by what is called; each round makes many."""
    layers = nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 2)
    model, steps, actions = nn.Sequential(*layers).to(device()), itertools.count(1), {}
    for of, library in libraries.items():
        undue = library.EMA(model, decay=0.9, interval=1 << 40)
        actions["update, not due" + of] = lambda undue=undue: undue.update(next(steps))
        actions |= {name + of: action for name, action in updates(model, library, steps).items()}
        actions["a look at the model" + of] = undue._look
    actions |= {name: action for name, action in peers(model).items() if "SWA" not in name}

    def repeated(action: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(calls):
                action()

        return run

    seconds = medians({name: repeated(action) for name, action in actions.items()}, rounds, clock())
    return {name: value / calls for name, value in seconds.items()}


def look(model: nn.Module, rounds: int) -> tuple[float, float]:
    """Seconds that a look at the model takes before each snapshot, and its share of a snapshot (LAWA, unchecked)."""
    lawa = LAWA(model, interval=1, window=1, check_finite=False)
    step = itertools.count(1)
    seconds = medians({"look": lawa._look, "snapshot": lambda: lawa.update(next(step))}, rounds, clock())
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
    parser.add_argument("--against", metavar="FOLDER", help="another working tree, whose averagers are timed too")
    arguments = parser.parse_args()
    libraries = {"": here}
    if arguments.against:
        try:
            libraries |= {", before": earlier(arguments.against)}
        except ValueError as error:
            parser.error(str(error))
    print(f"{machine()}; {arguments.numel:.3g} parameters, median of {arguments.rounds}\n")
    print("| action | ms | ratio to its limit |\n|---|---|---|")
    for name, seconds, ratio in measure(model_of(arguments.numel), arguments.rounds, libraries):
        print(f"| {name} | {1e3 * seconds:.1f} | {ratio:.2f} |")
    print("\n| a model of 482 weights | us |\n|---|---|")
    for name, seconds in small(5 * arguments.rounds, libraries).items():
        print(f"| {name} | {1e6 * seconds:.2f} |")
    model = model_of(arguments.numel)
    seconds, share = look(model, arguments.rounds)
    count = sum(p.numel() for p in model.parameters())
    print(f"\nA look at {count:,} weights, before each snapshot: {1e6 * seconds:.0f} us, {share:.4f} of a snapshot")


if __name__ == "__main__":
    main()
