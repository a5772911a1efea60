"""EMAs whose length grows with training, and EMAs in host memory."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.support.small_models import average_of, feed, model_of, randomise, saved, scalar_model, value_of
from tests.weight_averaging.torch.memory.test_host_copies import LateStreams
from weight_averaging import averages, offline
from weight_averaging.averages.horizon import warmup_weight
from weight_averaging.torch import EMA, Averages
from weight_averaging.torch.memory.host_copies import HostCopies


def test_an_ema_warms_up_by_the_schedule_of_others():
    model = scalar_model()
    ema = EMA(model, decay=0.9999, warmup=True)
    values = [float(v) for v in np.random.default_rng(0).normal(size=50)]
    feed(ema, model, values)
    expected = values[0]
    for count, value in enumerate(values[1:], start=1):
        decay = min(0.9999, (1 + count) / (10 + count))
        assert decay == pytest.approx(1 - warmup_weight(0.9999, count), rel=1e-12)
        expected = decay * expected + (1 - decay) * value
    assert average_of(ema, model) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1, 0.02])
def test_an_ema_with_a_share_covers_that_much_of_the_updates_so_far(share):
    """Snapshots are as old on average as those of a window over that share: (share / 2) of all updates."""
    model = scalar_model()
    ema = EMA(model, share=share)
    for count in (500, 2000):
        feed(ema, model, [float(step) for step in range(ema.step + 1, count + 1)], first_step=ema.step + 1)
        assert count - average_of(ema, model) == pytest.approx(share / 2 * count, rel=0.02, abs=1)
    if share == 1.0:
        assert average_of(ema, model) == pytest.approx(1000.5)  # the plain mean of all


@pytest.mark.parametrize("settings", [{"decay": 0.95, "warmup": True}, {"share": 0.2}, {"decay": 0.7}], ids=str)
@pytest.mark.parametrize("interval", [1, 3])
def test_growing_averages_are_those_offline_and_resume(settings, interval, tmp_path):
    model = model_of()
    ema = EMA(model, interval=interval, **settings)
    grid_description = (
        averages.Power(gamma=2 / settings["share"] - 2, interval=interval)
        if "share" in settings
        else averages.EMA(interval=interval, **settings)
    )
    grid = Averages(model, [grid_description])
    states = []
    for step in range(1, 31):
        if step == 15:
            state = saved(ema)
            ema = EMA(model, interval=interval, **settings)
            ema.load_state_dict(state)
        randomise(model, step)
        ema.update(step)
        grid.update(step)
        states.append((step, {k: v.clone() for k, v in model.state_dict().items()}))
    np.testing.assert_array_equal(value_of(ema, model), value_of(grid, model))
    (result,) = offline.Plan([(grid_description, 30)], range(1, 31)).run(iter(states))
    with ema.averaged():
        for name, value in model.state_dict().items():
            assert torch.equal(result.state[name], value), name


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, TypeError, "EMA needs a decay=: EMA.for_run"),
        ({"decay": 0.5, "share": 0.1}, TypeError, "either a decay or a share"),
        ({"share": 0.1, "warmup": True}, TypeError, "warmup goes with a decay"),
        ({"share": 1.5}, ValueError, r"share must be in \(0, 1\], not 1.5"),
        ({"decay": 0.5, "warmup": "yes"}, ValueError, "warmup must be True or False, not 'yes'"),
        ({"decay": 0.5, "placement": "gpu"}, ValueError, "placement must be one of auto, device, host, not 'gpu'"),
    ],
    ids=str,
)
def test_wrong_settings_of_an_ema_are_one_line(options, error, message):
    with pytest.raises(error, match=message):
        EMA(scalar_model(), **options)


def host_ema(model, streams, **options):
    """An EMA in another memory than its model."""
    ema = EMA(model, placement="host", **options)
    ema._tracks[0]._copies = HostCopies(streams)
    ema._tracks[0]._copied = torch.full((ema._weights.numel,), float("nan"))
    return ema


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["update", "update", "update", "evaluate", "save", "reload", "bad"]), max_size=14),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from([{"decay": 0.7}, {"decay": 0.9, "warmup": True}, {"share": 0.5}]),
)
def test_an_ema_in_host_memory_is_the_one_on_the_device(actions, dtype, settings):
    """Its snapshots arrive as late as they may."""
    model, streams = model_of(dtype=dtype), LateStreams()
    late, plain = host_ema(model, streams, **settings), EMA(model, **settings)
    for step, action in enumerate(actions, start=1):
        randomise(model, step)
        if action == "bad":
            next(model.parameters()).data.view(-1)[0] = float("nan")
            assert not late.update(step)
            assert not plain.update(step)
            continue
        late.update(step)
        plain.update(step)
        if action == "evaluate":
            np.testing.assert_array_equal(value_of(late, model), value_of(plain, model))
            assert streams.outstanding == 0
        elif action == "save":
            assert torch.equal(
                late.state_dict()["tracks"][0]["vectors"][0], plain.state_dict()["tracks"][0]["vectors"][0]
            )
        elif action == "reload":
            state = saved(late)
            late = host_ema(model, streams, **settings)
            late.load_state_dict(state)
    assert late.ready == plain.ready
    if plain.ready:
        np.testing.assert_array_equal(value_of(late, model), value_of(plain, model))


def test_emas_in_host_memory_do_not_wait_for_each_other_s_new_copies():
    model, streams = model_of(), LateStreams()
    wanted = [averages.EMA(decay=decay, interval=1) for decay in (0.5, 0.9)]
    late, plain = Averages(model, wanted, placement="host"), Averages(model, wanted)
    copies = HostCopies(streams)
    for track in late._tracks:
        track._copies, track._copied = copies, torch.full((late._weights.numel,), float("nan"))
    for step in range(1, 6):
        randomise(model, step)
        late.update(step)
        plain.update(step)
        assert streams.outstanding == 2
    for average in wanted:
        late.select(average)
        plain.select(average)
        np.testing.assert_array_equal(value_of(late, model), value_of(plain, model))


def test_a_missing_wait_for_an_ema_in_host_memory_is_noticed():
    model, streams = model_of(), LateStreams()
    streams.wait = streams.hold_training = lambda event: None
    late, plain = host_ema(model, streams, decay=0.5), EMA(model, decay=0.5)
    for step in range(1, 5):
        randomise(model, step)
        late.update(step)
        plain.update(step)
    assert not np.array_equal(value_of(late, model), value_of(plain, model))


def test_the_bytes_of_an_average_are_told(caplog):
    with caplog.at_level("INFO", "weight_averaging"):
        EMA(nn.Linear(1000, 1000), decay=0.5)
    assert caplog.messages[1] == "an exponential average of 1,001,000 weights is 4 MB, in host memory"
