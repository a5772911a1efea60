"""Merges by weights and by the shape of a decay, against their definitions; and coefficients of all averages."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weight_averaging import averages, offline
from weight_averaging.averages import EMA, LAWA, SHAPES, Merge, Power, Tail, Weighted


def snapshots_of(count: int, size: int = 7) -> dict[int, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(count)
    return {step: {"w": torch.randn(size, generator=generator)} for step in range(1, count + 1)}


def slow(snapshots, coefficients) -> torch.Tensor:
    states = [state["w"].double() for state in snapshots.values()]
    return sum(weight * state for weight, state in zip(coefficients, states[-len(coefficients) :], strict=True))


def run(average, snapshots, at=None) -> torch.Tensor:
    (result,) = offline.Plan([(average, at or max(snapshots))], list(snapshots)).run(snapshots.items())
    return result.state["w"]


def assert_near(value: torch.Tensor, expected: torch.Tensor, snapshots) -> None:
    largest = max(float(state["w"].abs().max()) for state in snapshots.values())
    assert float((value.double() - expected).abs().max()) <= (len(snapshots) + 8) * 2.0**-23 * max(largest, 1.0)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(SHAPES)), st.floats(0.05, 1.0), st.integers(1, 40), st.integers(1, 3))
def test_a_merge_is_what_a_decay_of_the_learning_rate_would_have_given(shape, share, count, interval):
    """The definition: theta_0 plus the updates between the snapshots, each weighted by the decay at its place."""
    snapshots = snapshots_of(count)
    average = Merge(shape=shape, share=share, interval=interval)
    try:
        members = average.members(list(snapshots), count)
    except averages.SnapshotError:
        return
    assert members == Tail(share=share, interval=interval).members(list(snapshots), count)
    states = [snapshots[step]["w"].double() for step in members]
    expected = states[0].clone()
    for j in range(1, len(states)):
        expected += SHAPES[shape](j / len(states)) * (states[j] - states[j - 1])
    assert_near(run(average, snapshots), expected, snapshots)
    coefficients = average.coefficients(len(members))
    assert math.isclose(math.fsum(coefficients), 1.0, abs_tol=1e-12)
    assert min(coefficients) >= 0


def test_shapes_at_hand():
    assert Merge(shape="linear", share=0.5).coefficients(4) == [0.25] * 4
    assert Merge(shape="1-sqrt", share=0.5).coefficients(4) == pytest.approx(
        [0.5, math.sqrt(0.5) - 0.5, math.sqrt(0.75) - math.sqrt(0.5), 1 - math.sqrt(0.75)]
    )
    assert Merge(shape="cosine", share=0.5).coefficients(2) == pytest.approx([0.5, 0.5])
    for shape in SHAPES:
        assert Merge(shape=shape, share=0.5).coefficients(1) == [1.0]
        assert SHAPES[shape](0.0) == 1.0
        assert SHAPES[shape](1.0) == pytest.approx(0.0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.floats(0.05, 1.0))
def test_a_linear_decay_is_the_mean_of_the_tail(count, share):
    snapshots = snapshots_of(count)
    mean = run(Tail(share=share), snapshots)
    assert_near(run(Merge(shape="linear", share=share), snapshots), mean.double(), snapshots)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=30), st.integers(0, 5))
def test_given_weights(raw, more):
    weights = tuple(value / math.fsum(raw) for value in raw)
    snapshots = snapshots_of(len(weights) + more)
    average = Weighted(weights=weights)
    assert_near(run(average, snapshots), slow(snapshots, weights), snapshots)
    equal = Weighted(weights=(1 / len(raw),) * len(raw))
    assert_near(run(equal, snapshots), run(LAWA(window=len(raw)), snapshots).double(), snapshots)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 25), st.sampled_from([EMA(decay=0.9), EMA(decay=0.99, warmup=True), Power(gamma=3.0)]))
def test_coefficients_are_what_recursions_amount_to(count, average):
    snapshots = snapshots_of(count)
    coefficients = average.coefficients(count)
    assert math.isclose(math.fsum(coefficients), 1.0, abs_tol=1e-12)
    assert_near(run(average, snapshots), slow(snapshots, coefficients), snapshots)


def test_merges_beside_other_averages_in_one_pass():
    snapshots = snapshots_of(12)
    wanted = [Merge(shape="1-sqrt", share=0.5), Weighted(weights=(0.5, 0.5)), LAWA(window=12), EMA(decay=0.5)]
    steps = list(snapshots)
    plan = offline.Plan([(average, at) for average in wanted for at in (12,)], steps)
    results = {result.average: result.state["w"] for result in plan.run(snapshots.items())}
    for average in wanted:
        assert torch.equal(results[average], run(average, snapshots))
    # Many windows that end everywhere are held as snapshots; sums beside them are kept as sums.
    ends = range(5, 13)
    many = [(LAWA(window=w), end) for end in ends for w in (2, 3, 4, 5)]
    plan = offline.Plan([*many, (wanted[0], 12)], steps)
    assert plan._work.held_until
    found = {(result.average, result.step): result.state["w"] for result in plan.run(snapshots.items())}
    assert torch.equal(found[wanted[0], 12], results[wanted[0]])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Merge(shape="square", share=0.5), "shape must be one of linear, cosine, 1-sqrt, not 'square'"),
        (lambda: Merge(shape="linear", share=0), "share must be in"),
        (lambda: Weighted(weights=(0.5, 0.4)), "weights must have the sum 1, not 0.9"),
        (lambda: Weighted(weights=(1.0, 0.0)), "finite numbers other than 0, not 0.0"),
        (lambda: Weighted(weights=(math.nan, 1.0)), "finite numbers other than 0, not nan"),
        (lambda: Weighted(weights=()), "weights must have the sum 1, not 0"),
    ],
)
def test_bad_settings_say_what_is_wrong(make, says):
    with pytest.raises(ValueError, match=says):
        make()
