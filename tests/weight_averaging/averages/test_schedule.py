"""When a snapshot is due, and which of those there are belong to an average."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weight_averaging.averages import Merge, SnapshotError, Tail
from weight_averaging.averages.schedule import is_due, missed, still_held


def test_a_snapshot_is_due_from_its_start_on():
    assert [step for step in range(1, 20) if is_due(step, interval=4, start=8)] == [8, 12, 16]


def test_a_window_holds_a_snapshot_exactly_at_its_start():
    assert still_held([4, 8, 12], interval=4, window=5, start=8) == [8, 12]
    assert still_held([4, 8, 12], interval=4, window=5, start=9) == [12]
    assert still_held([], interval=4, window=5) == []


def test_a_snapshot_exactly_at_the_start_is_missed():
    assert missed(last=3, step=9, interval=4, start=8) == 8
    assert missed(last=3, step=9, interval=4, start=9) == 0


@given(st.data())
def test_a_tail_has_the_share_that_was_asked_for(data):
    """k / n of all steps, however far k / n as a float is from it."""
    n = data.draw(st.sampled_from([*range(1, 100), 10, 100, 1000]))
    k, at = data.draw(st.integers(1, n)), data.draw(st.integers(1, 2000))
    expected = -(-k * at // n)  # steps > (1 - k / n) * at
    for average in (Tail(share=k / n), Merge(share=k / n, shape="cosine")):
        assert average.members(range(1, at + 1), at) == list(range(at - expected + 1, at + 1))


def test_nine_tenths_of_ten():
    for share in (0.9, 0.3 * 3, 1 - 0.1):
        assert Tail(share=share).members(range(1, 11), 10) == list(range(2, 11))
    assert Tail(share=1).members(range(1, 11), 10) == list(range(1, 11))
    with pytest.raises(SnapshotError, match=r"needs a snapshot of the last 0\.05 of the updates"):
        Tail(share=0.05).members([10, 20], 30)


@pytest.mark.parametrize(
    ("start", "held"), [(1, [64, 128, 192]), (64, [64, 128, 192]), (128, [128, 192]), (129, [192]), (193, [])]
)
def test_a_snapshot_exactly_at_the_start_counts(start, held):
    assert still_held([64, 128, 192], interval=64, window=20, start=start) == held


def test_the_first_update_may_be_due():
    assert is_due(1, interval=1)
    assert [step for step in range(1, 9) if is_due(step, interval=3)] == [3, 6]


def test_a_window_takes_over_no_more_than_it_holds():
    assert still_held([1, 2, 3, 4], interval=1, window=3) == [2, 3, 4]
    assert still_held([], interval=1, window=3) == []


@pytest.mark.parametrize(("start", "told"), [(1, 8), (8, 8), (9, 0)])
def test_what_was_due_before_the_start_is_not_missed(start, told):
    assert missed(7, 9, interval=4, start=start) == told
