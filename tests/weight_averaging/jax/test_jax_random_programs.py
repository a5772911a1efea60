"""Random programs over one state, beside a reference of a few lines in float64. PROGRAMS=200 runs as many."""

import os
import pickle
import random
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from weight_averaging.averages import EMA, LAWA, FollowsRate, Growing, Ramp, Weighted
from weight_averaging.errors import UsageError
from weight_averaging.jax import averaging, host_lawa

pytestmark = pytest.mark.filterwarnings("ignore")
RECURSIONS = {
    "ema": lambda n, i, s: EMA(decay=n.choice([0.5, 0.9]), interval=i, start=s, warmup=n.random() < 0.3),
    "growing": lambda n, i, s: Growing(share=n.choice([0.2, 1.0]), interval=i, start=s),
    "ramp": lambda n, i, s: Ramp(decay=0.9, length=20, interval=i, start=s),
    "follows": lambda n, i, s: FollowsRate(share=0.4, top_rate=n.choice([None, 0.1]), interval=i, start=s),
}
WINDOWS = {
    "lawa": lambda n, i, s: LAWA(window=n.randint(1, 4), interval=i, start=s, allow_partial=n.random() < 0.5),
    "weighted": lambda n, i, s: Weighted(weights=(0.25, 0.75), interval=i, start=s),
}
KINDS = {**RECURSIONS, **WINDOWS, "host": WINDOWS["lawa"]}


@dataclass
class Reference:
    """An average as its equations say, of flat vectors of all averaged numbers, and which updates are passed over."""

    described: Any
    check_finite: bool
    last: int = 0
    count: int = 0
    refused: int = 0
    snapshots: list[tuple[int, np.ndarray]] = field(default_factory=list)
    mean: np.ndarray | None = None
    rates: Any = None

    def update(self, vector: np.ndarray, step: int, rate: float) -> None:
        one = self.described
        due = step >= one.start and step % one.interval == 0
        is_first = step == 0 and self.last == 0 and self.count == 0
        if due and step < self.last and step != 0:
            self.refused += 1
        elif due and (step > self.last or is_first):
            finite = np.isfinite(vector).all() and (not isinstance(one, FollowsRate) or 0 <= rate < np.inf)
            if finite or not self.check_finite:
                self.take(vector, step, rate)
            else:
                self.refused += 1
        self.last = max(self.last, step)

    def take(self, vector: np.ndarray, step: int, rate: float) -> None:
        self.count += 1
        if self.described.held is not None:
            self.snapshots = [*self.snapshots, (step, vector)][-self.described.held :]
            return
        if isinstance(self.described, FollowsRate):
            weight, self.rates = self.described.enter(self.count, rate, self.rates or self.described.begins_with)
        else:
            weight = self.described.weight(self.count)
        self.snapshots = [(step, vector)]
        self.mean = vector if self.mean is None else self.mean + weight * (vector - self.mean)

    def go_on(self, described: Any) -> None:
        if described.interval != self.described.interval and self.count:
            self.count = max(1, round(self.count * self.described.interval / described.interval))
        knew = isinstance(self.described, FollowsRate) and isinstance(described, FollowsRate)
        self.described, self.rates = described, self.rates if knew else None

    def average(self) -> np.ndarray | None:
        """None while it is not ready."""
        if self.described.held is None:
            return self.mean
        if len(self.snapshots) < self.described.needed:
            return None
        shares = self.described.coefficients(len(self.snapshots))
        return sum(share * vector for share, (_, vector) in zip(shares, self.snapshots, strict=True))


def tree_of(numbers: np.random.Generator, bad: float | None = None) -> dict[str, Any]:
    """Parameters of all kinds of leaves."""
    draw = lambda *shape: numbers.normal(size=shape).astype(np.float32)  # noqa: E731
    tree = {
        "w": jnp.asarray(draw(3)), "half": [jnp.asarray(draw(2, 2), jnp.bfloat16), jnp.asarray(draw(), jnp.float16)],
        "number": jnp.int32(numbers.integers(100)), "none": None, "empty": {}, "flag": jnp.asarray([True, False]),
        "nothing": jnp.zeros((0, 2)), "complex": jnp.asarray(draw(2) + 1j * draw(2)),
    }  # fmt: skip
    if bad is not None:
        tree["half"][1] = jnp.asarray(bad, jnp.float16)
    return tree


def vector_of(tree: Any) -> np.ndarray:
    """All that is averaged, complex128."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return np.concatenate([np.asarray(leaf).astype(np.complex128).reshape(-1) for leaf in leaves])


def wide(tree: Any) -> Any:
    """The same tree with floating-point leaves that hide nothing of an average."""
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree
    )


def stepped(averager: Any, state: Any, params: Any, step: Any, rate: Any) -> Any:
    return averager.update(state, params, step, learning_rate=rate)


class Program:
    """One state and its reference. Each method that takes nothing is an action, of which any may come next."""

    def __init__(self, seed: int) -> None:
        self.draw, self.numbers = random.Random(seed), np.random.default_rng(seed)
        self.kind = sorted(KINDS)[seed % len(KINDS)]
        self.check_finite = self.draw.random() < 0.7
        self.averager = self.made(self.kind)
        self.params = tree_of(self.numbers)
        self.state = self.averager.init(self.params)
        self.reference = Reference(self.averager.described, self.check_finite)
        self.step = 0

    def made(self, kind: str) -> Any:
        described = KINDS[kind](self.draw, self.draw.randint(1, 3), self.draw.randint(0, 4))
        if kind == "host":
            fields = {name: getattr(described, name) for name in ("interval", "window", "start", "allow_partial")}
            return host_lawa(**fields, check_finite=self.check_finite)
        compensated = kind in RECURSIONS and self.draw.random() < 0.4
        return averaging(described, check_finite=self.check_finite, compensated=compensated)

    def told(self, step: int, bad: float | None = None, rate: float | None = None) -> None:
        """An update, in one of the ways to tell it."""
        self.params = tree_of(self.numbers, bad)
        rate = 0.1 * self.draw.random() if rate is None else rate
        ways = [step, np.int64(step), jnp.int32(step)]
        way = self.draw.randrange(5)
        if self.kind == "host" or way < 3:
            given = rate if way < 2 and 0 <= rate < np.inf else jnp.float32(rate)
            donate = self.draw.random() < 0.3
            update = self.averager.update
            self.state = update(self.state, self.params, ways[way % 3], learning_rate=given, donate=donate)
        elif way == 3:
            train = jax.jit(stepped, static_argnums=0, donate_argnums=1)
            self.state = train(self.averager, self.state, self.params, step, rate)
        else:
            one = jax.tree.map(lambda leaf: leaf[None], (self.params, jnp.int32(step), jnp.float32(rate)))
            self.state = jax.lax.scan(
                lambda state, given: (stepped(self.averager, state, *given), None), self.state, one
            )[0]
        self.reference.update(vector_of(self.params), step, float(np.float32(rate)))

    def update(self) -> None:
        self.step += 1
        self.told(self.step)

    more = still_more = update

    def refused(self) -> None:
        if self.check_finite:  # or the average is not finite for ever
            self.step += 1
            follows = isinstance(self.reference.described, FollowsRate)
            bad = self.draw.choice([np.nan, np.inf])
            if follows and self.draw.random() < 0.5:
                self.told(self.step, rate=self.draw.choice([-0.1, np.nan, np.inf]))
            else:
                self.told(self.step, bad)

    def again(self) -> None:
        self.told(self.step)

    def back(self) -> None:
        self.told(self.draw.randint(0, self.step))

    def runs_of_their_own(self) -> None:
        """Under vmap two states go different ways, and the first is this one."""
        if self.kind == "host":
            return
        self.step += 1
        other, rate = tree_of(self.numbers), 0.1 * self.draw.random()
        self.params = tree_of(self.numbers)
        both = jax.tree.map(lambda *pair: jnp.stack(pair), self.params, other)
        states = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), self.state)
        steps = jnp.asarray([self.step, self.step + self.draw.randint(0, 2)])
        states = jax.vmap(partial(stepped, self.averager), in_axes=(0, 0, 0, None))(states, both, steps, rate)
        self.state = jax.tree.map(lambda leaf: leaf[0], states)
        self.reference.update(vector_of(self.params), self.step, float(np.float32(rate)))

    def saved(self) -> None:
        """To bytes and back; the averager too."""
        settings = dict(self.averager.settings)
        if self.draw.random() < 0.5:
            self.averager, self.state = pickle.loads(pickle.dumps((self.averager, self.state)))
        else:
            flax = pytest.importorskip("flax.serialization")
            target = self.averager.init(tree_of(self.numbers))
            self.state = flax.from_bytes(target, flax.to_bytes(self.state))
        self.averager.check(self.state, settings)

    def goes_on(self) -> None:
        """With other settings, or as another recursion."""
        if self.kind not in RECURSIONS:
            with pytest.raises(UsageError, match="begin with a new state"):
                self.averager.go_on(self.state, dict(self.averager.settings))
            return
        settings, self.kind = dict(self.averager.settings), self.draw.choice(sorted(RECURSIONS))
        self.averager = self.made(self.kind)
        self.state = self.averager.go_on(self.state, settings)
        self.reference.go_on(self.averager.described)

    def another_tree(self) -> None:
        """Is refused, and nothing has changed."""
        other = tree_of(self.numbers)
        change = self.draw.randrange(4)
        if change == 0:
            other["none"] = jnp.zeros(1)
        elif change == 1:
            other["w"] = jnp.zeros(4)
        elif change == 2:
            other["number"] = jnp.float32(1)
        else:
            other["complex"] = jnp.int32(1)
        for call in (self.averager.average, lambda *given: self.averager.update(*given, 10**6, learning_rate=0.1)):
            with pytest.raises((ValueError, UsageError)) as told:
                call(self.state, other)
            assert "\n" not in str(told.value)

    def shown(self) -> None:
        """An evaluation changes nothing, shows what is not averaged as it is, and is in memory of its own."""
        jitted = self.kind != "host" and self.draw.random() < 0.5
        show = jax.jit(self.averager.average) if jitted else self.averager.average
        average = show(self.state, self.params)
        for name in ("number", "flag", "none", "empty"):
            assert np.array_equal(average[name], self.params[name]) or average[name] == self.params[name]
        for one, other in zip(jax.tree.leaves(average), jax.tree.leaves(self.params), strict=True):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
        for leaf in jax.tree.leaves(average):
            leaf.delete()

    def check(self) -> None:
        mine = self.reference
        assert (int(self.state.step), int(self.state.count)) == (mine.last, mine.count)
        assert int(self.state.refused) == mine.refused
        assert self.averager.snapshot_steps(self.state) == [step for step, _ in mine.snapshots]
        expected = mine.average()
        assert bool(self.averager.ready(self.state)) == (expected is not None)
        params = wide(self.params)
        found = vector_of(self.averager.average(self.state, params))
        expected = vector_of(params) if expected is None else expected
        np.testing.assert_allclose(found, expected, rtol=3e-5, atol=3e-6)


ACTIONS = [name for name, value in vars(Program).items() if callable(value) and not name.startswith("_")]
ACTIONS = [name for name in ACTIONS if name not in ("made", "told", "check")]


@pytest.mark.parametrize("seed", range(int(os.environ.get("PROGRAMS", str(len(KINDS))))))
def test_a_random_program_ends_as_the_reference(seed):
    program = Program(seed)
    done = []
    for _ in range(25):
        done.append(program.draw.choice(ACTIONS))
        try:
            getattr(program, done[-1])()
            program.check()
        except AssertionError as error:
            raise AssertionError(f"{program.averager.described} after {done}: {error}") from error
