"""The averages of JAX against those of PyTorch on the same snapshots, and against slow references."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
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
def snapshots(draw):
    """A sequence of trees, some of them not finite."""
    kinds = draw(st.lists(st.tuples(SHAPES, st.sampled_from([*DTYPES, "int32"])), min_size=1, max_size=4))
    kinds.append((draw(SHAPES), draw(st.sampled_from(list(DTYPES)))))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([1e-3, 1.0, 1e3]))
    steps = draw(st.integers(0, 24))
    bad = draw(st.sets(st.integers(0, 23), max_size=6))
    sequence = []
    for step in range(steps):
        leaves = {}
        for number, (shape, kind) in enumerate(kinds):
            if kind == "int32":
                leaves[f"leaf{number}"] = rng.integers(-100, 100, shape).astype(np.int32)
            else:
                leaves[f"leaf{number}"] = np.asarray(rng.normal(size=shape) * scale, DTYPES[kind])
        if step in bad:
            name = [f"leaf{number}" for number, (_, kind) in enumerate(kinds) if kind != "int32"][step % 2 - 1]
            leaves[name].reshape(-1)[-1] = [np.nan, np.inf, -np.inf][step % 3]
        sequence.append(leaves)
    return {
        f"leaf{n}": np.zeros(s, np.int32 if k == "int32" else DTYPES[k]) for n, (s, k) in enumerate(kinds)
    }, sequence


def run(averager, theirs, model, start, sequence):
    """Feed both; the two averages, in the types of the model, as float64 numbers."""
    update = jax.jit(averager.update, donate_argnums=0)
    params = jax.tree.map(jnp.asarray, start)
    state = averager.init(params)
    model.load(start)
    refused = 0
    for step, leaves in enumerate(sequence, start=1):
        model.load(leaves)
        held = theirs._shown.count
        collected = theirs.update(step)
        params = jax.tree.map(jnp.asarray, leaves)
        state = update(state, params, step)
        assert int(state.count) == theirs._shown.count == held + collected
        finite = all(np.isfinite(wide(leaf)).all() for leaf in leaves.values())
        refused += step >= theirs.start and step % theirs.interval == 0 and not finite
    assert int(state.refused) == refused
    assert bool(averager.ready(state)) == theirs.ready
    average = jax.jit(averager.average)(state, params)
    for name, leaf in average.items():
        assert leaf.dtype == params[name].dtype
    with theirs.averaged():
        return {name: wide(np.asarray(leaf)) for name, leaf in average.items()}, model.leaves(), average


@settings(max_examples=80, deadline=None)
@given(snapshots(), st.integers(1, 20), st.integers(1, 3), st.integers(1, 5), st.booleans())
def test_a_window_is_pytorchs_bit_for_bit(given, window, interval, start, allow_partial):
    zeros, sequence = given
    with double():
        model = Model(zeros)
        theirs = LAWA(model, interval=interval, window=window, start=start, allow_partial=allow_partial)
        averager = lawa(interval, window, start, allow_partial)
        mine, expected, _ = run(averager, theirs, model, zeros, sequence)
    for name in zeros:
        np.testing.assert_array_equal(mine[name], expected[name], err_msg=name)
        assert (np.signbit(mine[name]) == np.signbit(expected[name])).all()


@settings(max_examples=80, deadline=None)
@given(
    snapshots(),
    st.sampled_from(
        [{"decay": 0.0}, {"decay": 0.3}, {"decay": 0.9}, {"decay": 0.999, "warmup": True}, {"horizon": 0.1}]
    ),
    st.integers(1, 3),
    st.integers(1, 5),
)
def test_an_ema_is_pytorchs(given, options, interval, start):
    zeros, sequence = given
    with double():
        model = Model(zeros)
        theirs = EMA(model, interval=interval, start=start, **options)
        averager = ema(interval=interval, start=start, **options)
        mine, expected, types = run(averager, theirs, model, zeros, sequence)
    for name in zeros:
        np.testing.assert_array_equal(mine[name], expected[name], err_msg=name)
