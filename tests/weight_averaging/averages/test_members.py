"""Which snapshots an average is made of, against slow definitions, and what is said where one is missing."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weight_averaging.averages import EMA, LAWA, Merge, Power, SnapshotError, Tail, Weighted, exponential
from weight_averaging.averages.average import check_along_training
from weight_averaging.averages.checks import check_step

KINDS = [
    lambda **taken: LAWA(window=3, **taken),
    lambda **taken: LAWA(window=3, allow_partial=True, **taken),
    lambda **taken: EMA(decay=0.5, **taken),
    lambda **taken: Tail(share=0.5, **taken),
    lambda **taken: Merge(shape="linear", share=0.5, **taken),
    lambda **taken: Merge(shape="linear", window=3, **taken),
    lambda **taken: Weighted(weights=(0.5, 0.5), **taken),
]


def slow(average, due, at):
    """Those of the snapshots that are due; None if they do not suffice."""
    if isinstance(average, EMA):
        return due or None
    if getattr(average, "share", None) is not None:
        return [step for step in due if step > at / 2] or None
    length = 2 if isinstance(average, Weighted) else 3
    partial = isinstance(average, LAWA) and average.allow_partial
    return due[-length:] if len(due) >= (1 if partial else length) else None


def due_of(steps, at, interval, start):
    taken = steps if interval is None else range(interval, at + 1, interval)
    return [step for step in taken if start <= step <= at]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.none() | st.integers(1, 6),
    st.integers(1, 9),
    st.integers(1, 24),
    st.sets(st.integers(1, 24), min_size=1),
)
def test_members_are_those_of_the_definition_or_the_missing_one_is_named(make, interval, start, at, saved):
    average, steps = make(interval=interval, start=start), sorted(saved)
    expected = slow(average, due_of(steps, at, interval, start), at)
    if expected is not None and saved.issuperset(expected):
        assert average.members(steps, at) == expected
        return
    with pytest.raises(SnapshotError) as error:
        average.members(steps, at)
    if expected is None:
        assert " needs " in str(error.value)
        return
    missing = next(step for step in expected if step not in saved)
    assert f"needs the snapshot of step {missing}, which was not saved" in str(error.value)
    usable = []
    for other in range(1, 25):
        members = slow(average, due_of(steps, at, other, start), at)
        if members and saved.issuperset(members):
            usable.append(other)
    nearest = sorted(usable, key=lambda other: abs(math.log(other / interval)))[:3]
    said = f"usable intervals nearest to it: {', '.join(map(str, nearest))}" if nearest else "no interval does"
    assert f"({said}); saved are " in str(error.value)


def test_few_snapshots_are_named_and_of_many_the_first_two_and_the_last():
    for steps, said in [
        ([], "none up to there (saved are none)"),
        ([9], "none up to there (saved are 9)"),
        ([1, 2, 3, 4, 5], "5 up to there (1, 2, 3, 4, 5)"),
        ([1, 2, 3, 4, 5, 6], "6 up to there (1, 2, ..., 6)"),
    ]:
        with pytest.raises(
            SnapshotError, match=re.escape(f"lawa window=7 at step 8 needs 7 snapshots, but there are {said}")
        ):
            LAWA(window=7).members(steps, 8)
    with pytest.raises(SnapshotError, match=r"ema decay=0.5 at step 8 needs a snapshot, but there are none"):
        EMA(decay=0.5).members([9], 8)
    for average in (Tail(share=0.25), Merge(shape="linear", share=0.25)):
        with pytest.raises(SnapshotError, match=r"needs a snapshot of the last 0.25 of the updates, but there are 2"):
            average.members([1, 2, 9], 8)


def test_what_cannot_be_followed_along_training_is_refused():
    check_along_training(LAWA(window=2, interval=1))
    check_along_training(EMA(decay=0.5, interval=1))
    with pytest.raises(
        TypeError, match=r"^an average is described by one of weight_averaging.averages, not by 'lawa'$"
    ):
        check_along_training("lawa")
    with pytest.raises(TypeError, match=r"^tail share=0.5 interval=1 cannot be tracked along training"):
        check_along_training(Tail(share=0.5, interval=1))
    with pytest.raises(ValueError, match=r"^ema decay=0.5 start=2 needs an interval$"):
        check_along_training(EMA(decay=0.5, start=2))


def test_an_exponential_average_has_a_decay_or_a_horizon():
    assert exponential(0.9, warmup=True, interval=3, start=2) == EMA(decay=0.9, warmup=True, interval=3, start=2)
    assert exponential(0.9) == EMA(decay=0.9)
    assert exponential(None, 0.5, interval=3, start=2) == Power(gamma=2.0, interval=3, start=2)
    for given_both in [(0.9, 0.5), (None, None)]:
        with pytest.raises(TypeError, match="EMA takes either a decay or a share, not decay="):
            exponential(*given_both)
    with pytest.raises(TypeError, match="a share grows from the start: warmup goes with a decay"):
        exponential(None, 0.5, warmup=True)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LAWA(window=2, interval=0), "interval must be a whole number >= 1, not 0"),
        (lambda: LAWA(window=2, start=-1), "start must be a whole number >= 0, not -1"),
        (lambda: LAWA(window=0), "window must be a whole number >= 1, not 0"),
        (lambda: LAWA(window=2, allow_partial=1), "allow_partial must be True or False, not 1"),
        (lambda: EMA(decay=0.5, warmup=1), "warmup must be True or False, not 1"),
        (lambda: Tail(share=0), r"share must be in \(0, 1\], not 0"),
        (lambda: Merge(shape="linear"), "either a share or a window, not share=None and window=None"),
        (lambda: Merge(shape="linear", share=0.5, window=2), "either a share or a window, not share=0.5 and window=2"),
        (lambda: Merge(shape="linear", window=0), "window must be a whole number >= 1, not 0"),
        (lambda: Power(gamma=-0.5), "gamma must be a number >= 0, not -0.5"),
        (lambda: Power(gamma=math.inf), "gamma must be a number >= 0, not inf"),
    ],
)
def test_settings_that_cannot_be_are_named(make, says):
    with pytest.raises(ValueError, match=f"^.*{says}$"):
        make()


def test_the_step_of_an_update_is_a_whole_number_larger_than_the_last():
    assert check_step(3, 2) == 3
    for step, says in [(3.0, r"not 3.0: int\(3.0\)\?$"), (True, "not True$"), ("3", "not '3'$"), (None, "not None$")]:
        with pytest.raises(TypeError, match=says):
            check_step(step, 2)
    for step in (1, 2):
        with pytest.raises(ValueError, match=rf"^update\({step}\) after update\(2\): pass the number"):
            check_step(step, 2)
