"""The type of snapshots and averages: that of the model where it is float64, or as asked."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.support import reference
from tests.support.small_models import average_of, feed, flat, model_of, randomise, saved, scalar_model, value_of
from weight_averaging import averages
from weight_averaging.torch import EMA, LAWA, Averages

VALUE = -123456.789012345  # not a float32


def vector_types(averager):
    return {vector.dtype for track in averager._tracks for vector in track.slots()}


EVERY = {
    "lawa": lambda model, **options: LAWA(model, interval=1, window=3, **options),
    "ema": lambda model, **options: EMA(model, decay=0.75, **options),
    "weights": lambda model, **options: Averages(
        model, [averages.Weighted(weights=(0.25, 0.25, 0.5), interval=1)], **options
    ),
}
every = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)


@every
@pytest.mark.parametrize("placement", ["auto", "host"])
def test_float64_models_are_averaged_in_float64(make, placement):
    model = scalar_model(torch.float64)
    averager = make(model, placement=placement)
    feed(averager, model, [VALUE] * 3)
    assert average_of(averager, model) == VALUE
    assert averager.average_state_dict()["weight"].item() == VALUE
    assert vector_types(averager) == {torch.float64}


@every
def test_a_resumed_float64_average_loses_no_bit(make):
    model = scalar_model(torch.float64)
    whole = make(model)
    feed(whole, model, [VALUE, 1.0 / 3.0])
    resumed = make(model)
    resumed.load_state_dict(saved(whole))
    for averager in (whole, resumed):
        nn.init.constant_(model.weight, 0.1)
        averager.update(3)
    assert average_of(whole, model) == average_of(resumed, model)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1000),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.sampled_from([None, torch.float32, torch.float64]),
    st.integers(1, 6),
)
def test_averages_are_as_exact_as_their_type(seed, of_model, asked, updates):
    model = model_of(dtype=of_model)
    grid = Averages(
        model, [averages.LAWA(window=3, interval=1, allow_partial=True), averages.EMA(decay=0.9, interval=1)],
        dtype=asked,
    )  # fmt: skip
    seen = []
    for step in range(1, updates + 1):
        randomise(model, seed + step)
        seen.append(flat(model))
        grid.update(step)
    kind = asked or (torch.float64 if of_model == torch.float64 else torch.float32)
    assert vector_types(grid) == {kind}
    expected = np.mean(seen[-3:], 0), reference.ema(seen, 0.9)
    exact = 4 * torch.finfo(kind).eps
    for average, value in zip(grid.averages, expected, strict=True):
        grid.select(average)
        other = model_of().double()
        grid.copy_to(other)
        assert abs(flat(other) - value).max() <= exact * abs(np.array(seen)).max()


def test_one_float64_tensor_makes_the_average_float64_and_half_a_model_does_not():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    assert vector_types(LAWA(model, interval=1, window=1)) == {torch.float64}
    assert vector_types(LAWA(model, interval=1, window=1, exclude="1")) == {torch.float32}
    assert vector_types(LAWA(model_of(dtype=torch.bfloat16), interval=1, window=1)) == {torch.float32}
    assert vector_types(LAWA(scalar_model(torch.complex128), interval=1, window=1)) == {torch.float64}


@every
def test_a_model_that_becomes_float64_is_followed(make):
    model = scalar_model()
    averager = make(model)
    feed(averager, model, [1.0])
    model.double()
    feed(averager, model, [1.0, 1.0], first_step=2)
    assert average_of(averager, model) == 1.0
    feed(averager, model, [VALUE] * 3, first_step=4)
    assert vector_types(averager) == {torch.float64}
    model.float()
    averager.update(7)
    assert vector_types(averager) == {torch.float32}


def test_a_state_in_the_other_type_is_taken_over():
    model = scalar_model()
    plain, exact = LAWA(model, interval=1, window=2), LAWA(model, interval=1, window=2, dtype=torch.float64)
    feed(plain, model, [1.0, 2.0])
    exact.load_state_dict(copy.deepcopy(plain.state_dict()))
    assert average_of(exact, model) == 1.5
    plain.load_state_dict(copy.deepcopy(exact.state_dict()))
    assert average_of(plain, model) == 1.5
    assert vector_types(plain) == {torch.float32}


@pytest.mark.parametrize("decay", [0.999971, 0.9999999])  # told once in a process
def test_a_dead_zone_of_more_than_a_thousandth_is_told_once(decay, caplog):
    model = nn.Linear(2, 1)
    with caplog.at_level("WARNING", "weight_averaging"):
        EMA(model, decay=decay, dtype=torch.float64)
        EMA(nn.Linear(2, 1).double(), decay=decay)
        EMA(model, decay=0.9999)
        LAWA(model, interval=1, window=3)
        assert not caplog.messages
        for _ in range(2):
            EMA(model, decay=decay)
    (message,) = caplog.messages
    assert message.endswith(
        f"less than {2**-25 / (1 - decay):.0e} of their size: one with dtype=torch.float64 does not"
    )


@pytest.mark.parametrize(("decay", "value"), [(0.9999, 1.0002), (0.99999, 1.002)])
def test_trap_14_an_ema_with_a_long_memory_stalls_in_float32_and_not_in_float64(decay, value):
    updates = 2000
    model = scalar_model(torch.float64)
    kinds = {kind: EMA(model, decay=decay, dtype=kind) for kind in (torch.float32, torch.float64)}
    for ema in kinds.values():
        feed(ema, model, [1.0] + [value] * updates)
    assert average_of(kinds[torch.float32], model) == 1.0
    assert average_of(kinds[torch.float64], model) == pytest.approx(value + (1 - value) * decay**updates, rel=1e-12)


@every
def test_other_types_are_refused(make):
    for wrong in (torch.bfloat16, torch.int32, "float64"):
        with pytest.raises(ValueError, match=r"dtype must be torch\.float32 or torch\.float64, not"):
            make(scalar_model(), dtype=wrong)


@every
def test_values_beyond_float32_are_finite_in_float64(make):
    model = scalar_model(torch.float64)
    averager = make(model)
    feed(averager, model, [1e200] * 3)
    assert averager.ready
    assert average_of(averager, model) == 1e200


def test_a_float64_swap_gives_the_raw_weights_back():
    model = model_of(dtype=torch.float64)
    averager = LAWA(model, interval=1, window=2)
    for step in (1, 2):
        randomise(model, step)
        averager.update(step)
    raw = flat(model)
    value_of(averager, model)
    assert (flat(model) == raw).all()
