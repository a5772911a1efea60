"""What a description refuses, and what it says of the snapshots that it lacks."""

import numpy as np
import pytest

from weight_averaging.averages import EMA, LAWA, Merge, Power, Ramp, SnapshotError, Tail, Weighted, exponential
from weight_averaging.averages.average import check_along_training


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (LAWA, {"window": 3}),
        (EMA, {"decay": 0.5}),
        (Tail, {"share": 0.5}),
        (Merge, {"shape": "linear", "window": 3}),
        (Weighted, {"weights": (1.0,)}),
        (Power, {"gamma": 1.0}),
        (Ramp, {"decay": 0.5, "length": 2}),
    ],
)
def test_counts_are_whole_and_kept_as_plain_ints(kind, settings):
    counts = {name: np.int64(3) for name in ("interval", "start", *({"window"} & settings.keys()))}
    made = kind(**{**settings, **counts})
    assert all(type(getattr(made, name)) is int for name in counts)
    for name in counts:
        least = int(name != "start")
        for bad in (least - 1, 1.5, True):
            with pytest.raises(ValueError, match=f"{name} must be a whole number >= {least}, not {bad!r}"):
                kind(**{**settings, **counts, name: bad})


def test_the_first_snapshot_has_all_the_weight_of_its_time():
    assert Power(gamma=3.0).weight(1) == 1.0
    assert Power(gamma=0.0).weight(4) == pytest.approx(0.25)


def test_what_is_lacking_is_said():
    def says(average, steps, at, text):
        with pytest.raises(SnapshotError) as error:
            average.members(steps, at)
        assert text in str(error.value)

    says(LAWA(window=1, interval=5), [12], 12, "(usable intervals nearest to it: 6, 4, 3); saved are 12")
    says(LAWA(window=6), [1, 2, 3, 4, 5], 9, "needs 6 snapshots, but there are 5 up to there (1, 2, 3, 4, 5)")
    says(LAWA(window=7), [1, 2, 3, 4, 5, 6], 9, "but there are 6 up to there (1, 2, ..., 6)")
    says(Merge(shape="linear", window=3), [1, 2], 2, "needs 3 snapshots, but there are 2")
    says(Merge(shape="linear", share=0.5), [1, 2], 9, "needs a snapshot of the last 0.5 of the updates, but")
    says(EMA(decay=0.5), [3], 2, "needs a snapshot, but there are none up to there (saved are 3)")
    says(EMA(decay=0.5), [], 2, "(saved are none)")


def test_only_some_can_be_followed_along_training():
    for average in (
        LAWA(window=2, interval=3),
        EMA(decay=0.5, interval=3),
        Merge(shape="linear", window=2, interval=1),
    ):
        check_along_training(average)
    for average in (Tail(share=0.5, interval=3), Merge(shape="linear", share=0.5, interval=3)):
        with pytest.raises(TypeError, match="cannot be tracked along training: the number of its snapshots grows"):
            check_along_training(average)
    with pytest.raises(ValueError, match="lawa window=2 needs an interval"):
        check_along_training(LAWA(window=2))
    with pytest.raises(TypeError, match="an average is described by one of weight_averaging"):
        check_along_training("lawa")


def test_an_exponential_average_has_either_a_decay_or_a_horizon():
    assert exponential(0.9, interval=2) == EMA(decay=0.9, interval=2)
    assert exponential(None, share=0.5, start=4) == Power(gamma=2.0, start=4)
    for decay, horizon in ((None, None), (0.9, 0.1)):
        with pytest.raises(TypeError, match="takes either a decay or a share"):
            exponential(decay, horizon)
    with pytest.raises(TypeError, match="warmup goes with a decay"):
        exponential(None, share=0.1, warmup=True)
    for settings in ({"share": 0.5, "window": 3}, {}):
        with pytest.raises(ValueError, match="either a share or a window"):
            Merge(shape="linear", **settings)
