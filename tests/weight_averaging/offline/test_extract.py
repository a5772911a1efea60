"""The average out of a saved state is the one that the averager would show."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.small_models import model_of, randomise, saved
from weight_averaging.averages import EMA, LAWA, Average, Merge, Power, SnapshotError, Weighted
from weight_averaging.offline.extract import average_of_state
from weight_averaging.torch import Averager, Averages

KINDS = (
    *((LAWA, {"window": window, "allow_partial": partial}) for window in (1, 2, 9) for partial in (False, True)),
    *((Merge, {"window": window, "shape": shape}) for window in (1, 4) for shape in ("linear", "1-sqrt")),
    *((Weighted, {"weights": weights}) for weights in ((1.0,), (0.3, 0.7), (-0.25, 0.75, 0.5))),
    (EMA, {"decay": 0.7}),
    (Power, {"gamma": 3.0}),
)
described = st.builds(
    lambda kind, interval, start: kind[0](**kind[1], interval=interval, start=start),
    st.sampled_from(KINDS), st.integers(1, 3), st.integers(0, 4),
)  # fmt: skip


def followed(averager, model, updates: int) -> None:
    for step in range(updates + 1):
        randomise(model, step)
        if step or any(average.start == 0 for average in averager.averages):
            averager.update(step)


def is_what_it_shows(averager, average: str | None) -> None:
    """Bit for bit, from a state that went through a file."""
    state = saved(averager)
    if not averager.ready:
        with pytest.raises(SnapshotError, match=f"is not ready at step {averager.step}: it holds "):
            average_of_state(state, average)
        return
    expected = averager.average_state_dict()
    for name, value in average_of_state(state, average).items():
        assert torch.equal(value, expected[name]), name


@settings(max_examples=40, deadline=None)
@given(st.lists(described, min_size=1, max_size=4, unique=True), st.integers(1, 12))
def test_it_is_what_the_averager_shows(wanted, updates):
    model = model_of()
    averager = Averages(model, wanted)
    followed(averager, model, updates)
    for average in wanted:
        averager.select(average)
        is_what_it_shows(averager, str(average))


@settings(max_examples=40, deadline=None)
@given(described, st.integers(1, 12))
def test_the_only_average_need_not_be_named(average, updates):
    model = model_of()
    averager = Averager(model, average)
    followed(averager, model, updates)
    is_what_it_shows(averager, None)


@dataclass(frozen=True, kw_only=True)
class Ends(Average):
    window: int

    def coefficients(self, count):
        return [0.5, *[0.0] * (count - 2), 0.5]


def test_what_the_state_does_not_say_is_refused():
    model = model_of()
    averager = Averager(model, Ends(window=3, interval=1))
    followed(averager, model, 4)
    with pytest.raises(SnapshotError, match="does not say how ends window=3 interval=1 is made of its snapshots"):
        average_of_state(saved(averager))
    with pytest.raises(SnapshotError, match="'lawa window=3' is not among them: ends window=3"):
        average_of_state(saved(averager), "lawa window=3")
