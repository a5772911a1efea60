"""What newcomers and users of other libraries write first gets one line that says what to write here."""

import copy
import logging
import pickle

import pytest
import torch

from weight_averaging import EMA, LAWA, Averager, Averages, averages
from weight_averaging.elsewhere import ARGUMENTS
from weight_averaging.torch.averager import ELSEWHERE as ATTRIBUTES
from weight_averaging.trainers.averaging import Averaging


def model() -> torch.nn.Module:
    return torch.nn.Linear(1, 1, bias=False)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_argument_of_another_library_is_answered_by_ours(name):
    makers = [lambda **given: EMA(model(), **given), lambda **given: LAWA(model(), **given)]
    makers += [lambda **given: LAWA.for_run(model(), **given)]
    said = []
    for make in makers:
        with pytest.raises(TypeError) as raised:
            make(**{name: 3})
        said.append(str(raised.value))
    assert any(f"has no argument {name}: did you mean {ARGUMENTS[name]}?" in line for line in said), said
    assert not any("\n" in line for line in said)


@pytest.mark.parametrize("name", ["momentum", "alpha", "tau"])
def test_a_weight_that_is_that_of_the_new_weights_elsewhere_is_not_taken_for_a_decay(name):
    """Of mmengine momentum=.0002 is a decay of .9998; taken as a decay it would be no average."""
    with pytest.raises(TypeError, match=f"decay\\? Where {name} is .* and small, it is 1 - {name}$"):
        EMA(model(), **{name: 0.0002})


@pytest.mark.parametrize("given", [torch.nn.Sequential(model(), model()), torch.eye(9), list(range(999))])
def test_whatever_is_given_the_answer_is_one_line(given):
    averager = EMA(model(), decay=0.5)
    mistakes = [
        lambda: averager.update(given),
        lambda: EMA(model(), decay=given),
        lambda: EMA(model(), share=given),
        lambda: LAWA(model(), interval=given, window=2),
        lambda: LAWA(model(), interval=1, window=2, buffers=given),
        lambda: EMA(model(), decay=0.5, dtype=given),
        lambda: EMA(model(), decay=0.5, process_group=given),
        lambda: EMA(model(), decay=0.5, placement=given),
        lambda: Averager(model(), [given]),
        lambda: Averager(model(), averages.FollowsRate(top_rate=given, interval=1)),
        lambda: Averager(model(), averages.FollowsRate(interval=1)).update(1, learning_rate=given),
        lambda: averages.Merge(shape=given, window=2),
        lambda: averages.Ramp(decay=0.5, final=given, length=2),
        lambda: averages.Power(gamma=given),
    ]
    for mistake in mistakes:
        with pytest.raises((TypeError, ValueError)) as raised:
            mistake()
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 250


@pytest.mark.parametrize("name", [*ATTRIBUTES, "nothing_like_it"])
def test_an_attribute_of_another_library_is_answered_by_ours(name):
    lawa = LAWA(model(), interval=1, window=2)
    assert not hasattr(lawa, name)
    with pytest.raises(AttributeError) as raised:
        getattr(lawa, name)
    said = str(raised.value)
    assert said.startswith(f"'LAWA' object has no attribute {name!r}")
    assert said.endswith(f"{ATTRIBUTES[name]} (docs/migrating.md)" if name in ATTRIBUTES else repr(name))


def test_hints_of_attributes_name_what_there_is():
    averager = Averager(model(), EMA(model(), decay=0.5).averages[0])
    for name in ("averaged", "average_state_dict", "update"):
        assert callable(getattr(averager, name))
    for other in (copy.deepcopy(averager), pickle.loads(pickle.dumps(averager))):
        assert other.settings() == averager.settings()


def test_an_average_called_like_a_model_says_where_the_averaged_model_is():
    grid = [averages.LAWA(window=2, interval=1)]
    for averager in (LAWA(model(), interval=1, window=2), EMA(model(), decay=0.5), Averages(model(), grid)):
        with pytest.raises(TypeError) as raised:
            averager(torch.ones(1))
        assert str(raised.value) == (
            f"'{type(averager).__name__}' object is not callable: it is no model: `with averager.averaged():` has the "
            "average in the model, average_state_dict() is the average (docs/migrating.md)"
        )
        assert type(averager.step) is int  # as checkpoints that are loaded by weights_only=True need it


def test_a_trainer_that_is_given_an_averager_says_that_it_takes_a_function():
    with pytest.raises(TypeError, match=r"lambda model: LAWA\(model, \.\.\.\), not an averager$"):
        Averaging(LAWA(model(), interval=1, window=2), "same", "average", "", None, 1)


@pytest.mark.parametrize("kind", [LAWA, EMA])
def test_a_run_much_longer_than_said_is_reported_once(kind, caplog):
    averager = kind.for_run(model(), total_updates=100)
    with caplog.at_level(logging.WARNING, "weight_averaging"):
        for step in range(1, 201):
            averager.update(step)
        assert not caplog.records
        for step in range(201, 300):
            averager.update(step)
    assert [record.getMessage() for record in caplog.records] == [
        "update(201): the run is more than twice as long as the total_updates=100 of for_run, so the average covers a "
        "smaller share of it: pass the number of optimizer updates of the whole run"
    ]


def test_a_snapshot_and_an_update_are_singular(caplog):
    with caplog.at_level(logging.WARNING, "weight_averaging"):
        for window, interval in ((1, 4), (2, 1), (2, 4)):
            with LAWA(model(), window=window, interval=interval).averaged():
                pass
    assert [record.getMessage().partition(", with ")[2] for record in caplog.records] == [
        "1 snapshot", "2 snapshots 1 update apart", "2 snapshots 4 updates apart",
    ]  # fmt: skip


def test_a_first_update_of_0_is_not_said_to_come_after_one():
    averager = LAWA(model(), interval=1, window=2)
    with pytest.raises(ValueError, match=r"^update\(0\) before update\(1\): pass .* with start=0$"):
        averager.update(0)
    averager.update(3)
    with pytest.raises(ValueError, match=r"^update\(2\) after update\(3\): "):
        averager.update(2)


@pytest.mark.parametrize(("given", "end"), [(1e5, "100000.0: 100000?"), (1.5, "not 1.5"), (float("inf"), "not inf")])
def test_a_length_that_is_a_float_is_answered_by_the_whole_number(given, end):
    with pytest.raises(ValueError, match="total_updates must be a whole number >= 1") as raised:
        LAWA.for_run(model(), total_updates=given)
    assert str(raised.value).endswith(end)
