"""A saved state for a model of which other layers are frozen by now, or that has other tensors."""

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.support.small_models import model_of, randomise, saved
from weight_averaging import averages
from weight_averaging.torch import EMA, LAWA, Averager, Averages

MAKERS = {
    "lawa": lambda model, **options: LAWA(model, interval=1, window=2, **options),
    "ema": lambda model, **options: EMA(model, decay=0.5, **options),
    "grid": lambda model, **options: Averages(model, [averages.LAWA(window=2, interval=1)], **options),
    "described": lambda model, **options: Averager(
        model, averages.Merge(shape="1-sqrt", window=2, interval=1), **options
    ),
}
KINDS = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
trained = st.sets(st.sampled_from([0, 1, 2]), min_size=1)  # layers


def train_only(model, layers):
    for index, layer in enumerate(model):
        layer.requires_grad_(index in layers)


@KINDS
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_resuming_with_other_layers_frozen_ends_as_the_unbroken_run(make, data):
    """Whatever is frozen and unfrozen, before, between and after, under either settings."""
    unbroken, resumed = model_of(), model_of()
    train_only(unbroken, layers := data.draw(trained))
    train_only(resumed, layers)
    one, other = make(unbroken), make(resumed)
    for step in range(1, data.draw(st.integers(4, 7))):
        for model, averager in ((unbroken, one), (resumed, other)):
            randomise(model, step)
            averager.update(step)
        layers = data.draw(trained)
        how = data.draw(st.sampled_from(["go on", "same", "new"]))
        train_only(unbroken, layers)
        train_only(resumed, layers)
        for averager in (one, other):  # both look at the model, as one that loads does
            averager.swap_in()
            averager.swap_out()
        if how != "go on":
            state = saved(other)
            other = make(resumed)
            other.load_state_dict(state, settings=how)
        if one.ready:
            for name, value in one.average_state_dict().items():
                torch.testing.assert_close(other.average_state_dict()[name], value, rtol=0, atol=0)
        assert other.ready == one.ready


@KINDS
@pytest.mark.parametrize("how", ["same", "new"])
def test_layers_unfrozen_before_loading_are_new_and_named(make, how, caplog):
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(2)))
    train_only(model, {1})
    first = make(model)
    for step in (1, 2):
        nn.init.constant_(model[1].weight, step)
        first.update(step)
    state = saved(first)
    nn.init.constant_(model[0].weight, 7)
    train_only(model, {0, 1})
    second = make(model)
    second.load_state_dict(state, settings=how)
    assert "has no 0.weight (1 tensors): in the snapshots held they count as they are now" in caplog.text
    assert second.average_state_dict()["0.weight"].item() == 7
    assert second.average_state_dict()["1.weight"].item() == first.average_state_dict()["1.weight"].item()


@KINDS
def test_what_fits_is_taken_under_new_settings_and_the_rest_is_named(make, caplog):
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 2), nn.Linear(2, 1, bias=False))
    first = make(model)
    for step in (1, 2):
        randomise(model, step)
        first.update(step)
    state, average = saved(first), first.average_state_dict()
    wider = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 3))
    second = make(wider)
    with pytest.raises(ValueError, match=r'1 of its own are not in this model \(2.weight\); settings="new"'):
        second.load_state_dict(state)
    assert not second.ready
    with caplog.at_level(logging.WARNING, "weight_averaging"):
        second.load_state_dict(state, settings="new")
    assert "has no 1.weight, 1.bias (2 tensors)" in caplog.text
    assert "2.weight (1 tensors) of the saved" in caplog.text
    result = second.average_state_dict()
    assert torch.equal(result["0.weight"], average["0.weight"])
    assert torch.equal(result["1.weight"], wider[1].weight)

    with pytest.raises(ValueError, match="has shape"):
        make(nn.Linear(5, 5)).load_state_dict(saved(make(nn.Linear(1, 1))), settings="new")
    stranger = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1, bias=False))
    train_only(stranger, {2})
    nothing_fits, other = make(stranger, exclude="0"), saved(make(nn.Sequential(nn.Linear(1, 1))))
    with pytest.raises(ValueError, match=r"of another model: 1 of 1 tensors are not in it \(2.weight\), 2 of its own"):
        nothing_fits.load_state_dict(other, settings="new")


@pytest.mark.parametrize("how", ["same", "new"])
def test_a_state_taken_while_swapped_is_loaded_whole_or_not_at_all(how):
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(2)))
    train_only(model, {1})
    first = EMA(model, decay=0.5)
    first.update(1)
    first.swap_in()
    state = saved(first)
    first.swap_out()
    train_only(model, {0, 1})
    second = EMA(model, decay=0.5)
    with pytest.raises(ValueError, match=r"0.weight is not in it as it is here, so its raw values would be lost"):
        second.load_state_dict(state, settings=how)
    assert not second.ready


def resumed(before, after, caplog):
    """An averager made by `after` that goes on from one made by `before` at update 12, and what was said."""
    model = model_of()
    first, second = before(model), after(model)
    for step in range(1, 13):
        randomise(model, step)
        first.update(step)
    with caplog.at_level(logging.WARNING):
        second.load_state_dict(saved(first), settings="new")
    return first, second, caplog.text


def test_averages_of_a_grid_go_on_at_another_interval_and_new_ones_are_named(caplog):
    """As each does alone, by `LAWA` and `EMA`."""

    def grid(interval, decay):
        kinds = [
            averages.LAWA(window=2, interval=interval),
            averages.EMA(decay=decay, interval=interval),
            averages.Growing(share=0.3, interval=interval),
        ]
        return lambda model: Averages(model, kinds)

    first, second, said = resumed(grid(2, 0.5), grid(6, 0.5), caplog)
    assert "snapshots kept: 1 of 2, 1 of 1, 1 of 1" in said
    for old, new in zip(first.averages[1:], second.averages[1:]):
        first.select(old)
        second.select(new)
        for name, value in first.average_state_dict().items():
            torch.testing.assert_close(second.average_state_dict()[name], value, rtol=0, atol=0)
    caplog.clear()
    first, second, said = resumed(grid(2, 0.5), grid(2, 0.9), caplog)
    assert "snapshots kept: 2 of 2, none, as the state has no such average, 1 of 1" in said


@pytest.mark.parametrize("top", [None, 0.1])
def test_an_average_that_follows_rates_says_that_a_growing_one_knew_none(top, caplog):
    """Its share of the updates is by the top of the schedule, which may be over."""
    growing = averages.Growing(share=0.3, interval=1)
    follows = averages.FollowsRate(share=0.3, top_rate=top, interval=1)
    _, _, said = resumed(lambda model: Averager(model, growing), lambda model: Averager(model, follows), caplog)
    assert ("knows no learning rates" in said) == (top is None)
    caplog.clear()
    model = model_of()
    same, other = Averager(model, follows), Averager(model, follows)
    same.update(1, learning_rate=0.1)
    other.load_state_dict(saved(same))
    assert "knows no learning rates" not in caplog.text
