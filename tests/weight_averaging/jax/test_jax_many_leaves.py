"""The mean of a window of many leaves: alike ones are compiled once, and the average is the same bit for bit."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weight_averaging.averages import Weighted
from weight_averaging.jax import averaging, lawa, window

LAYER = {"kernel": (5, 3), "bias": (3,), "scale": (3,), "table": (2, 3)}


@given(st.lists(st.integers(0, 6), max_size=300))
@settings(max_examples=80, deadline=None)
def test_every_place_has_its_turn_and_two_programs_serve_all(kinds):
    turns = window.rounds(kinds)
    assert sorted(place for turn in turns for place in turn) == list(range(len(kinds)))
    assert len({tuple(kinds[place] for place in turn) for turn in turns}) <= 2
    compiled = {tuple(kinds[place] for place in turn) for turn in turns}
    assert sum(map(len, compiled)) + len(turns) <= len(kinds) + 1  # never more than in one call


def test_a_transformers_layers_are_compiled_once():
    kinds = [name for _ in range(24) for name in "qkvoud"] + ["bias"] * 24 * 9 + ["embedding", "bias"]
    turns = window.rounds(kinds)
    assert Counter(map(len, turns)) == {15: 24, 2: 1}


def tree(value, layers, odd):
    """Of `layers` alike, and a few leaves that are none of them: whole numbers, float16."""
    shapes = {f"layer{number}": LAYER for number in range(layers)}
    made = {name: {key: value(shape) for key, shape in layer.items()} for name, layer in shapes.items()}
    return made | {"head": value((3, 7)), "half": value((4,)).astype(jnp.float16), "seen": jnp.int32(odd), "one": 1.5}


@pytest.mark.parametrize(
    "averager",
    [lawa(1, 3), lawa(1, 5, allow_partial=True), averaging(Weighted(weights=(0.2, 0.5, 0.3), interval=1))],
    ids=["mean", "of some", "weighted"],
)
@pytest.mark.parametrize("layers", [2, 17])
def test_the_average_is_that_of_one_call_bit_for_bit(averager, layers):
    rng = np.random.default_rng(0)

    def value(shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    state = averager.init(tree(value, layers, 0))
    one_call = jax.jit(averager.average)
    for step in range(1, 5):
        params = tree(value, layers, step)
        state = averager.update(state, params, step)
        mine, theirs = averager.average(state, params), one_call(state, params)
        assert jax.tree.structure(mine) == jax.tree.structure(theirs)
        assert int(mine["seen"]) == step
        for one, other in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            np.testing.assert_array_equal(one, other)
    for one, leaf in zip(jax.tree.leaves(mine), jax.tree.leaves(params), strict=True):
        assert one is not leaf  # memory of its own
    from_file = jax.tree.map(np.asarray, state)
    again = averager.average(from_file, jax.tree.map(np.asarray, params))
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(mine), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_does_not_belong_together_is_told_as_of_few_leaves():
    averager = lawa(1, 2)
    params = {f"w{number}": jnp.zeros(2) for number in range(80)}
    state = averager.init(params)
    with pytest.raises(ValueError, match=r"\['w3'\] is \(2, 2\) in the averaging state and not \(2, 5\)"):
        averager.average(state, {**params, "w3": jnp.zeros(5)})
    with pytest.raises(ValueError, match="the state comes first"):
        averager.average(params, state)
    assert averager.average(state, params)["w3"].tolist() == [0.0, 0.0]  # not ready: the parameters
