"""The pairwise mean against float64, within its bound."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weight_averaging.torch import LAWA
from weight_averaging.torch.tracks.mean import LEAF, accumulators, pairwise_mean


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 300), st.integers(0, 10**6), st.sampled_from([0.0, 1.0, 1e4]))
def test_the_mean_is_within_its_bound_of_float64(count, seed, offset):
    generator = torch.Generator().manual_seed(seed)
    vectors = [torch.randn(5, generator=generator) + offset for _ in range(count)]
    sums = [torch.full((5,), math.nan) for _ in range(accumulators(count))]  # as memory comes
    mean = pairwise_mean(vectors, sums).double().numpy()
    stacked = torch.stack(vectors).double().numpy()
    bound = (LEAF + max(0.0, math.log2(count / LEAF)) + 1) * 2.0**-24 * np.abs(stacked).mean(axis=0)
    assert (np.abs(mean - stacked.mean(axis=0)) <= bound).all()


@pytest.mark.parametrize("window", [1, 3, 20])
def test_nothing_drifts_over_many_pushes(window):
    """A running sum of values around 1e4, of which each push replaces one, would be off by then."""
    model = torch.nn.Linear(1, 1, bias=False)
    lawa = LAWA(model, interval=1, window=window)
    values = 1e4 + torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for step, value in enumerate(values, start=1):
            model.weight.fill_(value)
            lawa.update(step)
    with lawa.averaged():
        exact = values[-window:].double().mean().item()
        assert model.weight.item() == pytest.approx(exact, rel=2.0**-24 * (LEAF + 3))
