"""The order of checkpoints by numbers that trainers write in many ways, and numbers that begin anew on the way."""

import pathlib

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms.source import Source
from weight_averaging.offline.reading.order import from_place, numbered


class Read(Source):
    def __init__(self, name, **counters):
        super().__init__(pathlib.Path(name))
        self.counters = counters

    def read(self, names):
        raise NotImplementedError


def in_short(number: int) -> list[str]:
    """All ways to write a number of steps that name it exactly."""
    ways = [str(number), f"{number:07d}"]
    ways += [f"{number:,}"] if number >= 1000 else []
    for size, letters in ((10**3, "kK"), (10**6, "mM"), (10**9, "bB")):
        if number and number * 10 % size == 0:
            digits = f"{number / size:.1f}" if number % size else str(number // size)
            ways += [digits + letter for letter in letters]
    power = len(str(number)) - len(str(number).rstrip("0"))
    return ways + ([f"{number // 10**power}e{power}"] if power else [])


@given(st.data(), st.sampled_from(["step_", "step=", "iter", "model-", "", "run3-global_step"]))
def test_steps_in_short_are_the_numbers_that_they_stand_for(data, label):
    whole = st.integers(1, 999) | st.builds(lambda n, p: n * 10**p, st.integers(1, 99), st.integers(1, 9))
    steps = data.draw(st.lists(whole, min_size=2, max_size=5, unique=True))
    names = [data.draw(st.sampled_from(in_short(step))) for step in steps]
    sources = [Read(f"{label}{name}.pt") for name in names]
    unit, numbers, _ = numbered(sources)
    assert (unit, [numbers[source.path] for source in sources]) == ("step", steps)
    assert list(from_place(sources, "name")[1].values()) == steps


def test_letters_after_a_number_of_something_else_are_left_alone():
    for name, step in (("vit7b_400.pt", 400), ("abc2b_1e5f_7.pt", 7), ("m_0.81k_30.pt", 30), ("10hours_6.pt", 6)):
        assert list(numbered([Read(name)])[1].values()) == [step]


EPOCH_AND_STEP = st.tuples(st.integers(0, 3), st.integers(0, 3))


@given(st.lists(EPOCH_AND_STEP, min_size=2, max_size=6, unique=True), st.sampled_from(["in it", "in name", "bare"]))
def test_a_counter_of_an_epoch_is_no_step_of_a_run(places, where):
    """Taken for one, it would put a later checkpoint before an earlier one."""
    assume(where != "bare" or any(step - epoch not in (0, 1) for epoch, step in places))  # else it is the epoch's
    make = {
        "in it": lambda index, epoch, step: Read(f"{'abcdef'[index]}.pt", epoch=epoch, step=step),
        "in name": lambda index, epoch, step: Read(f"epoch{epoch}_iter{step}.pt"),
        "bare": lambda index, epoch, step: Read(f"{'abcdef'[index]}_{step}.pt", epoch=epoch),
    }[where]
    sources = [make(index, *place) for index, place in enumerate(places)]
    goes_back = any(a[0] < b[0] and a[1] >= b[1] for a in places for b in places)
    if goes_back and len({step for _, step in places}) > 1:
        with pytest.raises(SnapshotError, match="begins anew on the way; say what counts, by --step-from"):
            numbered(sources)
        return
    unit, numbers, _ = numbered(sources)
    taken = [step if unit == "step" else epoch for epoch, step in places]
    assert [numbers[source.path] for source in sources] in (taken, [number + 1 for number in taken])


def test_what_counts_whole_runs_may_go_against_epochs():
    stages = [Read("a.pt", epoch=9, global_step=100), Read("b.pt", epoch=1, global_step=200)]
    assert list(numbered(stages)[1].values()) == [100, 200]


def test_a_counter_that_goes_against_the_step_in_names_is_refused():
    sources = [Read("step_100.pt", step=100), Read("step_200.pt", step=200), Read("step_300.pt", step=50)]
    with pytest.raises(SnapshotError, match=r"step_300\.pt: step in it is 50 after 200 of step_200\.pt, while "):
        numbered(sources)
    assert list(from_place(sources, "name")[1].values()) == [100, 200, 300]


def test_the_number_of_a_copy_is_no_step():
    copied = [Read("100.pt"), Read("200.pt"), Read("200 (1).pt")]
    assert list(numbered(copied)[1].values()) == [100, 200, 200]  # which `Snapshots` refuses
    with pytest.raises(SnapshotError, match="numbers, which put the checkpoints in different orders"):
        numbered([Read("100.pt"), Read("200.pt"), Read("200_copy_1.pt")])
