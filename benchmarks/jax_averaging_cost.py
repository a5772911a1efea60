"""The cost of averaging in JAX beside optax and the memory-traffic limit.

    python -m benchmarks.jax_averaging_cost

All rows are jitted, with the state in donated memory. Ratios are to a copy of the weights (read and write), or, of an
EMA, to `optax.incremental_update` (read two, write one), in the same run and in turns; of a mean, to the time of
reading the window at the copy's bandwidth. `unchecked` is `check_finite=False`; the default reads the weights once
more.

The training step is a multilayer perceptron with Adam on a batch of 64, with and without an update of the average in
the same jitted function: where no snapshot is due, where one is, and over an interval of 64.
"""

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from weight_averaging.jax import Averager, ema, lawa

WINDOW = 20


def medians(actions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each action, a list over `rounds`, in turns whose order changes, after two for warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    order = random.Random(0)
    for number in range(rounds + 2):
        for name in order.sample(list(actions), len(actions)):
            start = time.perf_counter()
            jax.block_until_ready(actions[name]())
            if number >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(mine: list[float], other: list[float], factor: float = 1.0) -> float:
    """The median of the ratios within a round: what else the machine does hits both."""
    return statistics.median(a / (b * factor) for a, b in zip(mine, other, strict=True))


class Donated:
    """A jitted function of a value that it replaces, in the same memory."""

    def __init__(self, function: Callable[..., Any], value: Any) -> None:
        self.value = value
        self._function = jax.jit(function, donate_argnums=0)

    def __call__(self, *arguments: Any) -> Any:
        self.value = self._function(self.value, *arguments)
        return self.value


def weights_of(count: int, width: int = 1024) -> dict[str, jax.Array]:
    """Matrices and vectors of about `count` weights in all, as a Transformer's."""
    keys = jax.random.split(jax.random.key(0), count // (4 * width**2) + 1)
    return {f"w{n}": jax.random.normal(key, (width, 4 * width)) for n, key in enumerate(keys)} | {
        f"b{n}": jnp.zeros(width) for n in range(len(keys))
    }


def averaging(count: int, rounds: int) -> list[tuple[str, float, float, str]]:
    """Rows (name, seconds, ratio, what it is a ratio to)."""
    params = weights_of(count)
    steps = iter(range(1, 1 << 30))

    def updates(averager: Averager) -> Callable[[], Any]:
        update = Donated(averager.update, averager.init(params))
        return lambda: update(params, jnp.int32(next(steps)))

    runs = jax.tree.map(lambda leaf: leaf.reshape(2, -1), params)

    def updates_of_runs(averager: Averager) -> Callable[[], Any]:
        update = Donated(jax.vmap(averager.update, in_axes=(0, 0, None)), jax.vmap(averager.init)(runs))
        return lambda: update(runs, jnp.int32(next(steps)))

    full = lawa(1, WINDOW)
    state = full.init(params)
    for step in range(1, WINDOW + 1):
        state = jax.jit(full.update, donate_argnums=0)(state, params, step)
    average = jax.jit(full.average)
    copy = Donated(lambda held, params: jax.tree.map(lambda h, p: h.at[:].set(p), held, params), _copy(params))
    incremental = Donated(lambda held, params: optax.incremental_update(params, held, 0.1), _copy(params))
    transform = optax.ema(0.9, debias=False)
    optax_ema = Donated(lambda held, params: transform.update(params, held)[1], transform.init(params))
    seconds = medians(
        {
            "copy of the weights": lambda: copy(params),
            "optax.incremental_update": lambda: incremental(params),
            "optax.ema": lambda: optax_ema(params),
            "ema, unchecked": updates(ema(0.9, check_finite=False)),
            "ema": updates(ema(0.9)),
            "lawa, unchecked": updates(lawa(1, 4, check_finite=False)),
            "lawa": updates(lawa(1, 4)),
            "lawa, not due": updates(lawa(1 << 30, 4)),
            "lawa, not due, two runs under vmap": updates_of_runs(lawa(1 << 30, 4)),
            "ema, not due, two runs under vmap": updates_of_runs(ema(0.9, interval=1 << 30)),
            f"average of a lawa of {WINDOW}": lambda: average(state, params),
        },
        rounds,
    )
    rows = []
    for name, values in seconds.items():
        base = "optax.incremental_update" if "ema" in name.lower() or "optax" in name else "copy of the weights"
        factor = (WINDOW + 1) / 2 if name.startswith("average") else 1.0
        limit = f"{factor:g} x {base}" if factor > 1 else base
        rows.append((name, statistics.median(values), ratio(values, seconds[base], factor), limit))
    return rows


def training(width: int, rounds: int, interval: int = 64) -> list[tuple[str, float, float]]:
    """Rows (name, seconds of a step, ratio to one without averaging)."""
    optimizer = optax.adam(1e-3)
    inputs, targets = jnp.ones((64, width)), jnp.ones((64, width))
    keys = jax.random.split(jax.random.key(1), 4)

    def loss(params: list[jax.Array]) -> jax.Array:
        hidden = inputs
        for weight in params:
            hidden = jnp.tanh(hidden @ weight)
        return jnp.mean((hidden - targets) ** 2)

    def made(averager: Averager | None, steps: Iterable[int]) -> Callable[[], Any]:
        params = [jax.random.normal(key, (width, width)) / width**0.5 for key in keys]
        held = (params, optimizer.init(params), averager.init(params) if averager else None)

        def train_step(held: Any, step: jax.Array) -> Any:
            params, state, averaging = held
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            params = optax.apply_updates(params, updates)
            return params, state, averager.update(averaging, params, step) if averager else None

        step_of, steps = Donated(train_step, held), iter(steps)
        return lambda: step_of(jnp.int32(next(steps)))

    due, not_due = range(interval, 1 << 30, interval), range(1, 1 << 30, interval)
    averagers = {"lawa": lawa(interval, WINDOW), "ema": ema(0.9, interval)}
    seconds = medians(
        {
            "plain": made(None, not_due),
            **{f"{name}, not due": made(averager, not_due) for name, averager in averagers.items()},
            **{f"{name}, due": made(averager, due) for name, averager in averagers.items()},
        },
        rounds,
    )
    rows = [(name, statistics.median(values), ratio(values, seconds["plain"])) for name, values in seconds.items()]
    for name in averagers:
        (idle, low), (busy, high) = (
            next(row[1:] for row in rows if row[0] == f"{name}, {when}") for when in ("not due", "due")
        )
        share = 1 / interval
        rows.append((f"{name}, interval of {interval}", idle + share * (busy - idle), low + share * (high - low)))
    return rows


def _copy(params: Any) -> Any:
    return jax.tree.map(jnp.copy, params)


def machine() -> str:
    device = jax.devices()[0]
    name = device.device_kind
    if device.platform == "cpu" and Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}; jax {jax.__version__}; optax {optax.__version__}; Python {platform.python_version()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--weights", type=int, default=50_000_000, help="about as many weights")
    parser.add_argument("--width", type=int, default=1024, help="of the perceptron that is trained")
    parser.add_argument("--rounds", type=int, default=15, help="turns, of which the median counts")
    args = parser.parse_args()
    print(f"{machine()}; {args.weights / 1e6:.0f} million weights\n")
    print("| action | ms | ratio | to |\n|---|---|---|---|")
    for name, seconds, value, limit in averaging(args.weights, args.rounds):
        print(f"| {name} | {seconds * 1e3:.1f} | {value:.2f} | {limit} |")
    print("\n| training step | ms | ratio |\n|---|---|---|")
    for name, seconds, value in training(args.width, 20 * args.rounds):
        print(f"| {name} | {seconds * 1e3:.1f} | {value:.3f} |")


if __name__ == "__main__":
    main()
