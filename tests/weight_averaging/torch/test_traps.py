"""Every way in which earlier implementations of weight averaging went wrong, the numbers those of docs/traps.md."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import weight_averaging.torch.model.blocks as blocks
from tests.support.small_models import average_of, feed, flat, model_of, randomise, saved, scalar_model, value_of
from weight_averaging.torch import EMA, LAWA


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Blocks of a few elements, so that small models have many and every way of cutting occurs."""
    monkeypatch.setattr(blocks, "CPU_BLOCK", 7)


def test_trap_1_the_decay_is_not_truncated():
    model = scalar_model()
    ema = EMA(model, decay=0.2)
    feed(ema, model, [1.0, 2.0])
    assert average_of(ema, model) == pytest.approx(0.2 * 1 + 0.8 * 2)


def test_trap_2_the_window_moves_without_a_leftover():
    model = scalar_model()
    lawa = LAWA(model, interval=1, window=3)
    feed(lawa, model, [1.0, 2.0, 3.0, 4.0])
    assert average_of(lawa, model) == 3.0


def test_trap_3_a_part_filled_window_is_divided_by_what_it_holds():
    model = scalar_model()
    lawa = LAWA(model, interval=1, window=10, allow_partial=True)
    feed(lawa, model, [2.0, 4.0])
    assert average_of(lawa, model) == 3.0


def test_trap_4_the_initial_weights_are_not_in_the_ema():
    model = scalar_model()
    model.weight.data.fill_(1e6)  # a random initialisation, far from anything trained
    ema = EMA(model, decay=0.99)
    feed(ema, model, [1.0] * 9)
    assert average_of(ema, model) == pytest.approx(1.0)


def test_trap_5_snapshots_do_not_alias_the_live_weights():
    model = scalar_model()
    averagers = [LAWA(model, interval=1, window=2, placement="host"), EMA(model, decay=0.5)]
    for step, value in enumerate([1.0, 3.0], start=1):
        model.weight.data.fill_(value)
        for averager in averagers:
            averager.update(step)
    model.weight.data.fill_(100.0)
    assert [average_of(averager, model) for averager in averagers] == [2.0, 2.0]


def test_trap_6_an_evaluation_before_the_first_snapshot_sees_the_raw_weights_and_says_so_once(caplog):
    model = scalar_model()
    lawa = LAWA(model, interval=5, window=2)
    model.weight.data.fill_(7.0)
    with caplog.at_level(logging.WARNING, "weight_averaging"):
        for _ in range(2):
            with lawa.averaged() as swapped:
                assert not swapped
                assert model.weight.item() == 7.0
    assert [record.getMessage() for record in caplog.records] == [
        "LAWA is not ready at step 0: the raw weights are evaluated. It will be ready after update 10, with "
        "2 snapshots 5 updates apart"
    ]


def test_trap_7_swapping_in_twice_keeps_the_raw_weights():
    model = scalar_model()
    ema = EMA(model, decay=0.5)
    feed(ema, model, [1.0, 3.0])
    assert ema.swap_in()
    assert ema.swap_in()
    with ema.averaged():
        assert model.weight.item() == 2.0
    assert ema.swapped  # the block found it swapped and left it so
    assert ema.swap_out()
    assert not ema.swap_out()
    assert model.weight.item() == 3.0


@pytest.mark.parametrize("make", [lambda m: LAWA(m, interval=1, window=2), lambda m: EMA(m, decay=0.5)])
def test_trap_8_a_checkpoint_taken_while_swapped_resumes_from_the_raw_weights(make):
    model = scalar_model()
    averager = make(model)
    feed(averager, model, [1.0, 3.0])
    averager.swap_in()
    checkpoint = {"model": {k: v.clone() for k, v in model.state_dict().items()}, "averager": saved(averager)}
    assert checkpoint["model"]["weight"].item() == 2.0

    resumed = scalar_model()
    other = make(resumed)
    resumed.load_state_dict(checkpoint["model"])
    other.load_state_dict(checkpoint["averager"])
    assert not other.swapped
    assert resumed.weight.item() == 3.0
    assert average_of(other, resumed) == 2.0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9), st.integers(0, 6), st.booleans(), st.booleans())
def test_trap_9_a_resumed_averager_goes_on_as_if_never_stopped(before, after, lawa, swapped):
    make = (lambda m: LAWA(m, interval=2, window=3)) if lawa else (lambda m: EMA(m, decay=0.7, interval=2))
    model, resumed = model_of(), model_of(seed=1)
    averager, other = make(model), make(resumed)
    for step in range(1, before + 1):
        randomise(model, step)
        averager.update(step)
    if swapped:
        averager.swap_in()
    resumed.load_state_dict(model.state_dict())
    other.load_state_dict(saved(averager))
    averager.swap_out()
    np.testing.assert_array_equal(flat(resumed), flat(model))
    for step in range(before + 1, before + after + 1):
        for m, a in ((model, averager), (resumed, other)):
            randomise(m, step)
            a.update(step)
    assert other.snapshot_steps == averager.snapshot_steps
    np.testing.assert_array_equal(value_of(other, resumed), value_of(averager, model))


@pytest.mark.gpu
def test_trap_10_a_host_window_stays_on_the_host_whatever_the_map_location():
    model = scalar_model().cuda()
    lawa = LAWA(model, interval=1, window=2, placement="host")
    feed(lawa, model, [1.0, 2.0])
    state = lawa.state_dict()
    state["tracks"][0]["vectors"] = [vector.cuda() for vector in state["tracks"][0]["vectors"]]
    lawa.load_state_dict(state)
    vectors = lawa.state_dict()["tracks"][0]["vectors"]
    assert [vector.device.type for vector in vectors] == ["cpu", "cpu"]


def test_trap_10_loaded_vectors_are_copied_to_where_the_averager_lives():
    model = scalar_model()
    lawa = LAWA(model, interval=1, window=2, placement="host")
    feed(lawa, model, [1.0, 2.0])
    state = lawa.state_dict()
    track = state["tracks"][0]
    track["vectors"] = [vector.double() for vector in track["vectors"]]  # as from a file, of whatever kind
    lawa.load_state_dict(state)
    track["vectors"][0].zero_()
    kinds = [(v.dtype, v.device.type) for v in lawa.state_dict()["tracks"][0]["vectors"]]
    assert kinds == [(torch.float32, "cpu")] * 2
    assert average_of(lawa, model) == 1.5


def test_trap_14_a_bfloat16_model_has_a_float32_average_that_does_not_stall():
    model = scalar_model(torch.bfloat16)
    ema = EMA(model, decay=0.999)
    feed(ema, model, [1.0] + [2.0] * 1000)
    # In bfloat16 the very first update, of 1 by .001, would round to nothing.
    assert average_of(ema, model) == pytest.approx(2 - 0.999**1000, rel=2**-8)


def test_trap_15_batch_norm_statistics_are_averaged_or_left_as_asked():
    for buffers, expected in (("average", 2.0), ("latest", 3.0)):
        model = nn.BatchNorm1d(1)
        lawa = LAWA(model, interval=1, window=2, buffers=buffers)
        for step, value in ((1, 1.0), (2, 3.0)):
            model.running_mean.fill_(value)
            model.num_batches_tracked.fill_(step)
            lawa.update(step)
        with lawa.averaged():
            assert model.running_mean.item() == expected
            assert model.num_batches_tracked.item() == 2  # integer buffers are the latest
        assert model.running_mean.item() == 3.0


def test_trap_16_wrapper_prefixes_are_dropped_and_another_model_is_an_error():
    inner = model_of()
    wrapped = nn.DataParallel(torch.compile(inner))
    ema = EMA(wrapped, decay=0.5)
    randomise(inner, 1)
    ema.update(1)
    plain = model_of(seed=1)
    other = EMA(plain, decay=0.5)
    other.load_state_dict(saved(ema))
    np.testing.assert_array_equal(value_of(other, plain), flat(inner))

    stranger = EMA(nn.Linear(3, 5), decay=0.5)
    with pytest.raises(ValueError, match="of another model: 2 of 2 tensors are not in it"):
        stranger.load_state_dict(saved(ema))
    wider = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2, bias=False))
    with pytest.raises(ValueError, match=r"the saved 0.weight has shape \(5, 3\), this model's \(5, 4\)"):
        EMA(wider, decay=0.5).load_state_dict(saved(ema))


def test_trap_17_the_snapshot_of_this_step_is_in_the_average_of_this_step():
    model = scalar_model()
    lawa = LAWA(model, interval=2, window=2)
    feed(lawa, model, [1.0, 2.0, 3.0, 4.0])
    assert lawa.snapshot_steps == [2, 4]
    assert average_of(lawa, model) == 3.0


def test_trap_18_a_changed_interval_is_an_error():
    model = scalar_model()
    state = EMA(model, decay=0.5, interval=4).state_dict()
    with pytest.raises(ValueError, match="the saved EMA has interval=4, this EMA 8"):
        EMA(model, decay=0.5, interval=8).load_state_dict(state)
    with pytest.raises(ValueError, match="not the state of an averager"):
        EMA(model, decay=0.5).load_state_dict({"step": 3})
    with pytest.raises(ValueError, match="this is the state of an EMA, and the averager is a LAWA"):
        LAWA(model, interval=4, window=2).load_state_dict(state)
