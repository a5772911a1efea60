"""Saving and loading in any order and with other settings, steps of any kind, and two averagers on one model."""

import copy
import io
import logging
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.support.small_models import average_of, feed, flat, model_of, randomise, saved, scalar_model, value_of
from weight_averaging import averages
from weight_averaging.torch import EMA, LAWA, Averages, recompute_batch_norm

MAKERS = {
    "lawa": lambda model: LAWA(model, interval=1, window=2),
    "ema": lambda model: EMA(model, decay=0.5),
    "grid": lambda model: Averages(model, [averages.LAWA(window=2, interval=1)]),
}
KINDS = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)  # each is the mean of two snapshots, 1 and 2


def checkpoint_while_swapped(make, model):
    averager = make(model)
    feed(averager, model, [1.0, 3.0])
    averager.swap_in()
    checkpoint = {"model": copy.deepcopy(model.state_dict()), "averager": saved(averager)}
    assert checkpoint["model"]["weight"].item() == 2.0
    return checkpoint


@KINDS
@pytest.mark.parametrize("model_first", [False, True])
@pytest.mark.parametrize("assign", [False, True])
def test_a_checkpoint_taken_while_swapped_loads_in_either_order(make, model_first, assign):
    checkpoint = checkpoint_while_swapped(make, scalar_model())
    resumed = scalar_model()
    other = make(resumed)
    loads = [
        lambda: resumed.load_state_dict(copy.deepcopy(checkpoint["model"]), assign=assign),
        lambda: other.load_state_dict(checkpoint["averager"]),
    ]
    for load in loads if model_first else reversed(loads):
        load()
    assert resumed.weight.item() == 3.0  # not the average, 2
    assert average_of(other, resumed) == 2.0
    feed(other, resumed, [5.0], first_step=3)
    assert average_of(other, resumed) == (3.5 if isinstance(other, EMA) else 4.0)


@KINDS
def test_other_weights_loaded_on_purpose_are_left_alone(make):
    checkpoint = checkpoint_while_swapped(make, scalar_model())
    resumed = scalar_model()
    other = make(resumed)
    other.load_state_dict(checkpoint["averager"])
    resumed.load_state_dict({"weight": torch.full((1, 1), 7.0)})
    assert resumed.weight.item() == 7.0
    feed(other, resumed, [5.0], first_step=3)
    resumed.load_state_dict(checkpoint["model"])  # training has begun: no longer the same moment
    assert resumed.weight.item() == 2.0


@KINDS
def test_a_state_that_is_loaded_after_one_that_was_taken_while_swapped_counts_alone(make):
    checkpoint = checkpoint_while_swapped(make, scalar_model())
    resumed = scalar_model()
    other = make(resumed)
    plain = saved(other)
    other.load_state_dict(checkpoint["averager"])
    other.load_state_dict(plain)
    resumed.load_state_dict(checkpoint["model"])
    assert resumed.weight.item() == 2.0  # as loaded: the raw weights, 3, were those of the other state


def test_either_order_under_wrappers_and_with_recomputed_statistics():
    def make_model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 1))

    def train(model, averager):
        for step in (1, 2):
            randomise(model, step)
            model.train()
            averager.update(step)

    model = make_model()
    ema = EMA(model, decay=0.5, buffers="recompute")
    train(model, ema)
    raw = copy.deepcopy(model.state_dict())
    batches = [torch.randn(8, 3) for _ in range(2)]
    ema.swap_in(lambda: recompute_batch_norm(model, [lambda x=x: model(x) for x in batches]))
    state, weights = saved(ema), copy.deepcopy(model.state_dict())
    assert not torch.equal(weights["1.running_mean"], raw["1.running_mean"])
    for wrap in (lambda m: m, nn.DataParallel, torch.compile):
        resumed = make_model()
        other = EMA(wrap(resumed), decay=0.5, buffers="recompute")
        other.load_state_dict(state)
        resumed.load_state_dict(weights)
        for key, value in resumed.state_dict().items():
            assert torch.equal(value, raw[key]), key


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(MAKERS)), st.integers(0, 5), st.booleans(), st.booleans(), st.booleans())
def test_resuming_in_any_order_ends_bit_for_bit_as_an_unbroken_run(kind, before, swapped, model_first, copied):
    make = MAKERS[kind]
    model, resumed = model_of(), model_of(seed=1)
    averager, other = make(model), make(resumed)
    for step in range(1, before + 1):
        randomise(model, step)
        averager.update(step)
    if swapped:
        averager.swap_in()
    weights, state = copy.deepcopy(model.state_dict()), saved(averager)
    averager.swap_out()
    if copied:  # hooks that wait for the model's checkpoint do not hinder a copy
        other.load_state_dict(state)
        resumed, other = copy.deepcopy((resumed, other))
    loads = [lambda: resumed.load_state_dict(weights), lambda: other.load_state_dict(state)]
    for load in loads if model_first else reversed(loads):
        load()
    np.testing.assert_array_equal(flat(resumed), flat(model))
    for step in (before + 1, before + 2):
        for m, a in ((model, averager), (resumed, other)):
            randomise(m, step)
            a.update(step)
    np.testing.assert_array_equal(value_of(other, resumed), value_of(averager, model))


def test_steps_may_be_any_whole_number_and_are_stored_as_plain_ones():
    model = scalar_model()
    lawa = LAWA(model, interval=1, window=5, allow_partial=True)
    for step in (np.int64(1), np.uint8(2), torch.tensor(3), torch.tensor([4]), 5):
        assert lawa.update(step)
    file = io.BytesIO()
    torch.save(lawa.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert state["tracks"][0]["snapshot_steps"] == [1, 2, 3, 4, 5]
    assert [type(step) for step in (state["step"], *state["tracks"][0]["snapshot_steps"])] == [int] * 6
    for bad, message in (
        (6.0, r"a whole number, not 6.0: int\(6.0\)\?"),
        (True, "not True"),
        ("6", "not '6'"),
        (None, "not None"),
        (torch.tensor([6, 7]), "a whole number, not tensor"),
    ):
        with pytest.raises(TypeError, match=message):
            lawa.update(bad)
    assert lawa.step == 5


@KINDS
@pytest.mark.parametrize("inner", ["lawa", "ema"])
def test_two_averagers_on_one_model_do_not_mix(make, inner):
    """Nested, one would take its snapshots of the other's average (1.75 for 1.5), or lose the raw weights."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False))
    first, second = make(model), MAKERS[inner](model[0])  # one of them of a part of the model
    for step, value in ((1, 1.0), (2, 2.0)):
        model[0].weight.data.fill_(value)
        first.update(step)
        second.update(step)
    with first.averaged():
        for act in (second.swap_in, lambda: second.update(3), lambda: second.load_state_dict(saved(second))):
            with pytest.raises(RuntimeError, match=r"average of another averager, .*, is in the model: .*swap_out"):
                act()
        assert model[0].weight.item() == 1.5
    with second.averaged():
        assert model[0].weight.item() == 1.5
    assert model[0].weight.item() == 2.0
    other = scalar_model()
    alone = EMA(other, decay=0.5)
    with first.averaged():  # of another model
        feed(alone, other, [1.0, 3.0])
        assert average_of(alone, other) == 2.0


def test_an_averager_that_is_gone_blocks_nobody():
    """Whoever bakes the average in for good swaps it in and forgets the averager."""
    model = scalar_model()
    ema = EMA(model, decay=0.5)
    feed(ema, model, [1.0, 3.0])
    ema.swap_in()
    del ema
    lawa = LAWA(model, interval=1, window=1)
    assert lawa.update(1)
    assert average_of(lawa, model) == 2.0


@pytest.mark.parametrize(
    ("interval", "steps", "told"),
    [
        (4, [3, 7, 11, 15], r"update\(7\) came after update\(3\), .*due after update 4 .*interval, 4, .*multiple of 4"),
        (64, range(10, 400, 10), r"update\(70\) came after update\(60\), .*update 64 .*interval, 64, .*multiple of 10"),
        (4, [2, 4, 6, 8], None),
        (4, range(1, 20), None),
        (64, [1000, 1001], None),  # resumed, or begun late
    ],
    ids=str,
)
def test_a_counter_that_passes_by_the_interval_is_told_once(interval, steps, told, caplog):
    model = scalar_model()
    lawa = LAWA(model, interval=interval, window=2)
    for step in steps:
        assert lawa.update(step) == (step % interval == 0)
    messages = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(messages) == (told is not None)
    if told is not None:
        assert re.search(told, messages[0]), messages


def test_another_decay_that_prints_alike_is_another_decay():
    model = scalar_model()
    close = 0.9999999, 0.99999991
    assert f"{close[0]:g}" == f"{close[1]:g}"
    state = EMA(model, decay=close[0]).state_dict()
    with pytest.raises(ValueError, match=r"the saved EMA has decay=0.9999999, this EMA 0.99999991: to go on with"):
        EMA(model, decay=close[1]).load_state_dict(state)
    grids = [Averages(model, [averages.EMA(decay=decay, interval=1)]) for decay in close]
    with pytest.raises(ValueError, match=r"averages=\['ema decay=0.9999999 interval=1'\]"):
        grids[1].load_state_dict(grids[0].state_dict())


@pytest.mark.parametrize(
    ("interval", "window", "start", "kept"),
    [
        (2, 3, 1, [8, 10, 12]),  # as it was
        (2, 5, 1, [4, 6, 8, 10, 12]),
        (2, 9, 1, [4, 6, 8, 10, 12]),
        (4, 3, 1, [4, 8, 12]),
        (6, 3, 1, [6, 12]),  # 0 is no update
        (1, 3, 1, [12]),  # 11 was not taken
        (5, 3, 1, [10]),
        (2, 5, 9, [10, 12]),
        (2, 5, 10, [10, 12]),
        (64, 3, 1, []),
    ],
    ids=str,
)
def test_a_window_goes_on_with_new_settings(interval, window, start, kept, caplog):
    model = scalar_model()
    old = LAWA(model, interval=2, window=5)
    feed(old, model, [float(step) for step in range(1, 13)])
    new = LAWA(model, interval=interval, window=window, start=start, allow_partial=True)
    with pytest.raises(ValueError, match='settings="new"'):
        new.load_state_dict(old.state_dict())
    new.load_state_dict(old.state_dict(), settings="new")
    assert new.snapshot_steps == kept
    if kept:
        assert average_of(new, model) == np.mean(kept)
    assert f"snapshots kept: {len(kept)} of 5" in caplog.text
    feed(new, model, [float(step) for step in range(13, 200)], first_step=13)
    fresh_model = scalar_model()
    fresh = LAWA(fresh_model, interval=interval, window=window, start=start, allow_partial=True)
    feed(fresh, fresh_model, [float(step) for step in range(1, 200)])
    assert new.snapshot_steps == fresh.snapshot_steps
    assert average_of(new, model) == average_of(fresh, fresh_model)


def test_an_ema_goes_on_with_another_decay():
    model = scalar_model()
    old = EMA(model, decay=0.5)
    feed(old, model, [1.0, 3.0])
    new = EMA(model, decay=0.75, interval=2)
    new.load_state_dict(old.state_dict(), settings="new")
    feed(new, model, [100.0, 6.0], first_step=3)
    assert average_of(new, model) == 0.75 * 2 + 0.25 * 6


def test_a_grid_goes_on_with_what_it_has_in_common():
    model = scalar_model()
    old = Averages(model, [averages.LAWA(window=4, interval=1), averages.EMA(decay=0.5, interval=1)])
    feed(old, model, [1.0, 2.0, 3.0, 4.0])
    wanted = [
        averages.LAWA(window=2, interval=1),
        averages.EMA(decay=0.5, interval=1),
        averages.EMA(decay=0.9, interval=1),
    ]
    new = Averages(model, wanted)
    new.load_state_dict(old.state_dict(), settings="new")
    values = []
    for average in wanted:
        new.select(average)
        values.append(average_of(new, model) if new.ready else None)
    assert values == [3.5, 3.125, None]


def test_a_state_of_another_kind_is_named():
    model = scalar_model()
    with pytest.raises(ValueError, match="this is the state of a LAWA, and the averager is an EMA"):
        EMA(model, decay=0.5).load_state_dict(LAWA(model, interval=1, window=2).state_dict(), settings="new")
    with pytest.raises(ValueError, match="settings must be 'same' or 'new', not 'other'"):
        EMA(model, decay=0.5).load_state_dict(EMA(model, decay=0.5).state_dict(), settings="other")


def test_a_grid_of_another_kind_starts_empty_and_raw_values_are_not_dropped():
    model = scalar_model()
    old = Averages(model, [averages.LAWA(window=1, interval=1)])
    feed(old, model, [1.0])
    new = Averages(model, [averages.EMA(decay=0.5, interval=1)])
    new.load_state_dict(old.state_dict(), settings="new")
    assert not new.ready

    norm = nn.BatchNorm1d(1)
    ema = EMA(norm, decay=0.5)
    ema.update(1)
    ema.swap_in()
    with pytest.raises(ValueError, match=r"running_mean is not averaged here, so its raw values would be lost"):
        EMA(nn.BatchNorm1d(1), decay=0.5, buffers="latest").load_state_dict(ema.state_dict(), settings="new")
    ema.swap_out()
    other = EMA(nn.BatchNorm1d(1), decay=0.5, buffers="latest")
    other.load_state_dict(ema.state_dict(), settings="new")
    assert other.ready
