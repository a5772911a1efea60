"""The averages of JAX against those of PyTorch on the same snapshots, and against slow references."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weight_averaging.jax import ema, lawa
from weight_averaging.torch import EMA, LAWA

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float64": np.float64}
SHAPES = st.lists(st.integers(1, 7), max_size=3).map(tuple)


class Model(torch.nn.Module):
    """Parameters of given shapes and types, and an integer buffer."""

    def __init__(self, leaves: dict[str, np.ndarray]) -> None:
        super().__init__()
        for name, leaf in leaves.items():
            if leaf.dtype == np.int32:
                self.register_buffer(name, torch.zeros(leaf.shape, dtype=torch.int32))
            else:
                dtype = getattr(torch, leaf.dtype.name)
                self.register_parameter(name, torch.nn.Parameter(torch.zeros(leaf.shape, dtype=dtype)))

    def load(self, leaves: dict[str, np.ndarray]) -> None:
        with torch.no_grad():
            for name, tensor in self.state_dict(keep_vars=True).items():
                tensor.copy_(torch.from_numpy(wide(leaves[name])))

    def leaves(self) -> dict[str, np.ndarray]:
        return {
            name: (tensor if tensor.dtype == torch.int32 else tensor.double()).numpy().copy()
            for name, tensor in self.state_dict().items()
        }


def double():
    """JAX with float64, which it has only when asked; the way to ask has moved."""
    return jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64()


def wide(leaf: np.ndarray) -> np.ndarray:
    return np.array(leaf, np.int32 if leaf.dtype == np.int32 else np.float64)


@st.composite
def trees(draw):
    """Leaves of zeros: at least one of them floating-point."""
    kinds = draw(st.lists(st.tuples(SHAPES, st.sampled_from([*DTYPES, "int32"])), min_size=1, max_size=4))
    kinds.append((draw(SHAPES), draw(st.sampled_from(list(DTYPES)))))
    return {f"leaf{number}": np.zeros(shape, DTYPES.get(kind, np.int32)) for number, (shape, kind) in enumerate(kinds)}


@st.composite
def sequences(draw):
    """A function from leaves of zeros to a sequence of such trees, some of them not finite."""
    seed, steps, scale = (
        draw(st.integers(0, 2**32 - 1)),
        draw(st.integers(0, 24)),
        draw(st.sampled_from([1e-3, 1.0, 1e3])),
    )
    bad = draw(st.dictionaries(st.integers(0, 23), st.sampled_from([np.nan, np.inf, -np.inf]), max_size=6))

    def sequence(zeros):
        rng = np.random.default_rng(seed)
        for step in range(steps):
            leaves = {name: np.asarray(rng.normal(size=zero.shape) * scale, zero.dtype) for name, zero in zeros.items()}
            floats = [name for name, leaf in leaves.items() if leaf.dtype != np.int32 and leaf.size]
            if step in bad and floats:
                leaves[floats[step % len(floats)]].reshape(-1)[-1] = bad[step]
            yield leaves

    return sequence


def their_type(zeros):
    """Each leaf is averaged in its own type here; there all are in one, float32 unless none has fewer bits than 64."""
    floats = {leaf.dtype for leaf in zeros.values() if leaf.dtype != np.int32}
    return torch.float64 if floats == {np.dtype(np.float64)} else torch.float32


def assert_agree(averager, theirs, zeros, sequence, update, average, ulp=0.0):
    """Feed both the same, then compare the averages that they show.

    Args:
        ulp: how many units in the last place they may differ in, of the largest snapshot; 0: not in a bit.
    """
    largest = 0.0
    model = Model(zeros)
    theirs = theirs(model)
    params = jax.tree.map(jnp.asarray, zeros)
    state = averager.init(params)
    refused = 0
    for step, leaves in enumerate(sequence, start=1):
        model.load(leaves)
        collected = theirs.update(step)
        params = jax.tree.map(jnp.asarray, leaves)
        if collected:
            largest = max(np.abs(wide(leaf)).max(initial=largest) for leaf in leaves.values() if leaf.dtype != np.int32)
        state = update(state, params, step)
        refused += step >= theirs.start and step % theirs.interval == 0 and not collected
        assert int(state.count) == theirs._shown.count
        assert int(state.refused) == refused
    assert bool(averager.ready(state)) == theirs.ready
    shown = average(state, params)
    with theirs.averaged():
        for name, expected in model.leaves().items():
            assert shown[name].dtype == zeros[name].dtype
            mine = wide(np.asarray(shown[name]))
            if zeros[name].dtype == np.float64 and their_type(zeros) == torch.float32:
                np.testing.assert_allclose(mine, expected, rtol=0, atol=4 * 2.0**-24 * largest, err_msg=name)
            elif ulp:
                unit = max(2.0**-23, float(jnp.finfo(zeros[name].dtype).eps)) if zeros[name].dtype != np.int32 else 0.0
                np.testing.assert_allclose(mine, expected, rtol=0, atol=ulp * unit * largest, err_msg=name)
            else:
                np.testing.assert_array_equal(mine, expected, err_msg=name)
                assert (np.signbit(mine) == np.signbit(expected)).all()


def compare(averager, theirs, zeros, sequences, **tolerance):
    update, average = jax.jit(averager.update, donate_argnums=0), jax.jit(averager.average)
    with double():
        for sequence in sequences:
            assert_agree(averager, theirs, zeros, sequence(zeros), update, average, **tolerance)


several = st.lists(sequences(), min_size=3, max_size=3)


@settings(max_examples=10, deadline=None)
@given(trees(), several, st.integers(1, 20), st.integers(1, 3), st.integers(1, 5), st.booleans())
def test_a_window_is_pytorchs_bit_for_bit(zeros, sequences, window, interval, start, allow_partial):
    given = {"interval": interval, "window": window, "start": start, "allow_partial": allow_partial}
    compare(lawa(**given), lambda model: LAWA(model, **given, dtype=their_type(zeros)), zeros, sequences)


# From 0.12 on JAX's compiler rounds twice in some short loops, where torch.lerp and all other loops round once.
ROUNDING = 1.0 if jax.__version_info__ >= (0, 12) else 0.0
EMAS = [{"decay": 0.0}, {"decay": 0.3}, {"decay": 0.9}, {"decay": 0.999, "warmup": True}]


@settings(max_examples=10, deadline=None)
@given(trees(), several, st.sampled_from(EMAS), st.integers(1, 3), st.integers(1, 5))
def test_an_ema_is_pytorchs_bit_for_bit(zeros, sequences, options, interval, start):
    given = {**options, "interval": interval, "start": start}
    compare(ema(**given), lambda model: EMA(model, **given, dtype=their_type(zeros)), zeros, sequences, ulp=ROUNDING)


@settings(max_examples=5, deadline=None)
@given(trees(), several, st.sampled_from([0.02, 0.1, 0.5, 1.0]), st.integers(1, 3))
def test_an_ema_with_a_horizon_is_pytorchs_within_one_unit_in_the_last_place(zeros, sequences, horizon, interval):
    """Its weights, a power, are float32 here and float64 there."""
    given = {"horizon": horizon, "interval": interval}
    compare(ema(**given), lambda model: EMA(model, **given, dtype=their_type(zeros)), zeros, sequences, ulp=1.0)


@pytest.mark.parametrize("window", [3, 8, 17, 40])
@pytest.mark.parametrize("allow_partial", [False, True])
def test_long_windows_are_summed_in_the_same_order(window, allow_partial):
    given = {"interval": 1, "window": window, "allow_partial": allow_partial}
    zeros = {"leaf": np.zeros(3001, np.float32)}
    average, sequence = lawa(**given), np.random.default_rng(window).normal(size=(3 * window // 2, 3001))
    leaves = [{"leaf": values.astype(np.float32)} for values in sequence]
    assert_agree(average, lambda model: LAWA(model, **given), zeros, leaves, average.update, average.average)


@pytest.mark.parametrize("options", [{"decay": 0.9999, "warmup": True}, {"share": 0.02}, {"decay": 0.999}], ids=str)
def test_after_thousands_of_snapshots_an_ema_is_within_rounding_of_pytorchs(options):
    """The weights of a growing EMA are float32 here and float64 there, up to their last step."""
    average = ema(**options)
    model = Model({"leaf": np.zeros(100, np.float32)})
    theirs = EMA(model, **options)
    values = np.random.default_rng(0).normal(size=(5_000, 100)).astype(np.float32)
    state = jax.jit(
        lambda state, values: jax.lax.scan(
            lambda state, given: (average.update(state, *given), None),
            state,
            ({"leaf": values}, jnp.arange(1, len(values) + 1)),
        )[0]
    )(average.init({"leaf": jnp.zeros(100)}), values)
    for step, leaf in enumerate(values, start=1):
        with torch.no_grad():
            model.leaf.copy_(torch.from_numpy(leaf))
        theirs.update(step)
    with theirs.averaged():
        expected = model.leaves()["leaf"]
    np.testing.assert_allclose(np.asarray(state.ema["leaf"]), expected, rtol=0, atol=2.0**-24 * np.abs(values).max())
