"""Which snapshots are due, and which a window of other settings takes over."""

import pytest

from weight_averaging.averages.schedule import is_due, missed, still_held


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
