import pytest
from hypothesis import given
from hypothesis import strategies as st

from weight_averaging.averages import checks
from weight_averaging.averages import horizon as horizons
from weight_averaging.averages.schedule import is_due


def test_due_at_multiples_from_the_start():
    due = [t for t in range(1, 13) if is_due(t, interval=3, start=5)]
    assert due == [6, 9, 12]


@given(st.floats(1e-4, 1.0), st.integers(1, 200), st.integers(1, 200_000))
def test_the_horizon_survives_the_clamping(horizon, window, step_hint):
    interval, length = horizons.interval_and_window(horizon, window, step_hint)
    assert interval >= 1
    assert 1 <= length <= window
    kept = horizons.horizon(interval, length, step_hint)
    if interval > 1:
        assert length == window
        # Rounding the interval moves the horizon by at most half an interval per snapshot.
        assert abs(kept - horizon) <= 0.5 * window / step_hint + 1e-12
    elif horizon * step_hint >= 1:
        assert abs(kept - horizon) * step_hint <= max(0.5, 0.5 * window) + 1e-9


def test_a_horizon_is_of_something():
    assert horizons.horizon(10, horizons.window_from_decay(19 / 21), 1000.0) == pytest.approx(0.2)
    for arguments, message in (
        ((10, 0, 1000), "of a window >= 1 in a number of updates, not of 0 in 1000"),
        ((10, 20, 0), "not of 20 in 0"),
        ((0, 20, 1000), "interval must be a whole number >= 1, not 0"),
    ):
        with pytest.raises(ValueError, match=message):
            horizons.horizon(*arguments)


@given(st.integers(1, 10_000))
def test_decay_and_window_are_inverse(window):
    assert horizons.window_from_decay(horizons.decay_from_window(window)) == pytest.approx(window)


def test_same_mean_age():
    # L snapshots are (L - 1) / 2 intervals old on average, an EMA's beta / (1 - beta).
    decay = horizons.decay_from_window(20)
    assert decay == pytest.approx(0.905, abs=5e-4)
    assert decay / (1 - decay) == pytest.approx((20 - 1) / 2)


@pytest.mark.parametrize("value", ["0.9", 1.0, -0.1, float("nan"), True, None])
def test_a_bad_decay_is_named(value):
    with pytest.raises(ValueError, match=r"decay must be a number in \[0, 1\), not"):
        checks.check_decay(value)


@pytest.mark.parametrize("value", [0, -1, 2.5, "3", True])
def test_a_bad_window_is_named(value):
    with pytest.raises(ValueError, match="window must be a whole number >= 1, not"):
        horizons.interval_and_window(0.1, value, 100)


@pytest.mark.parametrize("value", [0, -0.1, 1.5, float("nan"), "0.1"])
def test_a_bad_horizon_is_named(value):
    with pytest.raises(ValueError, match=r"horizon must be a share of training in \(0, 1\], not"):
        horizons.interval_and_window(value, 20, 100)
