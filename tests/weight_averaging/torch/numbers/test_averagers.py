"""The averagers against slow references, and at the edges: NaN, misuse, odd tensors."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import weight_averaging.torch.model.blocks as blocks
from tests.support import reference
from tests.support.small_models import average_of, feed, flat, floats, model_of, randomise, scalar_model, value_of
from weight_averaging import suggest
from weight_averaging.torch import EMA, LAWA


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Blocks of a few elements, so that small models have many and every way of cutting occurs."""
    monkeypatch.setattr(blocks, "CPU_BLOCK", 7)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 14),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_lawa_is_the_mean_of_the_last_snapshots(window, interval, start, steps, dtype):
    model = model_of(dtype=dtype)
    lawa = LAWA(model, interval=interval, window=window, start=start)
    snapshots = []
    for step in range(1, steps + 1):
        randomise(model, step)
        assert lawa.update(step) == (step >= start and step % interval == 0)
        if step >= start and step % interval == 0:
            snapshots.append(flat(model))
    expected = reference.lawa(snapshots, window)
    raw = flat(model)
    assert lawa.ready == (expected is not None)
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-6
    np.testing.assert_allclose(value_of(lawa, model), raw if expected is None else expected, atol=tolerance)
    np.testing.assert_array_equal(flat(model), raw)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([0.0, 0.2, 0.5, 0.9, 0.99]),
    st.integers(1, 3),
    st.integers(0, 14),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_ema_follows_its_recursion(decay, interval, steps, dtype):
    model = model_of(dtype=dtype)
    ema = EMA(model, decay=decay, interval=interval)
    snapshots = []
    for step in range(1, steps + 1):
        randomise(model, step)
        if ema.update(step):
            snapshots.append(flat(model))
    assert len(snapshots) == steps // interval
    expected = reference.ema(snapshots, decay)
    raw = flat(model)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-6
    np.testing.assert_allclose(value_of(ema, model), raw if expected is None else expected, atol=tolerance)
    np.testing.assert_array_equal(flat(model), raw)


@pytest.mark.parametrize("decay", [0.9, 0.5, 0.1, 0.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, -1])
def test_weights_that_are_not_finite_are_never_collected(decay, bad, place, caplog):
    model = model_of()
    averagers = [EMA(model, decay=decay), LAWA(model, interval=1, window=2)]
    for step in (1, 2, 3):
        randomise(model, step)
        for averager in averagers:
            averager.update(step)
    before = [value_of(averager, model) for averager in averagers]
    randomise(model, 4)
    floats(model)[place].detach().view(-1)[place] = bad
    with caplog.at_level(logging.WARNING, "weight_averaging"):
        assert [averager.update(4) for averager in averagers] == [False, False]
    assert len([r for r in caplog.records if "step 4: weights are not finite" in r.getMessage()]) == 2
    # EMA: what had been blended in is taken back, exact to rounding.
    np.testing.assert_allclose(value_of(averagers[0], model), before[0], rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(value_of(averagers[1], model), before[1])
    randomise(model, 5)
    assert [averager.update(5) for averager in averagers] == [True, True]


def test_a_first_snapshot_with_a_nan_leaves_nothing_behind():
    model = scalar_model()
    ema = EMA(model, decay=0.5)
    feed(ema, model, [float("nan")])
    assert not ema.ready
    feed(ema, model, [2.0], first_step=2)
    assert average_of(ema, model) == 2.0


def test_misuse_is_told():
    model = scalar_model()
    ema = EMA(model, decay=0.5)
    feed(ema, model, [1.0])
    with pytest.raises(ValueError, match=r"update\(1\) after update\(1\)"):
        ema.update(1)
    with ema.averaged(), pytest.raises(RuntimeError, match=r"call swap_out\(\) before training on"):
        ema.update(2)
    with pytest.raises(ValueError, match="buffers must be one of"):
        EMA(model, decay=0.5, buffers="mean")
    for arguments, name in (({"decay": "0.5"}, "decay"), ({"decay": 0.5, "interval": 0}, "interval")):
        with pytest.raises(ValueError, match=name):
            EMA(model, **arguments)
    with pytest.raises(ValueError, match="window"):
        LAWA(model, interval=1, window=0)
    with pytest.raises(ValueError, match="no trainable"):
        EMA(nn.ReLU(), decay=0.5)


def test_tied_frozen_masked_and_strided_tensors():
    model = nn.Module()
    model.a = nn.Linear(2, 2, bias=False)
    model.b = nn.Linear(2, 2, bias=False)
    model.b.weight = model.a.weight  # tied
    model.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    model.strided = nn.Parameter(torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last))
    model.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    model.register_buffer("cache", torch.ones(3), persistent=False)
    ema = EMA(model, decay=0.5)
    assert sorted(ema.state_dict()["names"]) == ["a.weight", "strided"]
    first, second = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 6)
    for step, value in ((1, first), (2, second)):
        model.strided.data.copy_(value)
        assert ema.update(step)
    with ema.averaged():
        torch.testing.assert_close(model.strided.data, (first + second) / 2)
    torch.testing.assert_close(model.strided.data, second)


def test_the_averager_follows_a_model_that_changes_its_type():
    model = model_of()
    ema = EMA(model, decay=0.5)
    randomise(model, 1)
    ema.update(1)
    model.double()  # replaces every tensor
    randomise(model, 2)
    assert ema.update(2)
    expected = reference.ema([flat_of_seed(1), flat_of_seed(2)], 0.5)
    np.testing.assert_allclose(value_of(ema, model), expected, atol=1e-6)


def flat_of_seed(seed: int) -> np.ndarray:
    model = model_of()
    randomise(model, seed)
    return flat(model)


def test_the_three_lines_of_the_package_docstring_run():
    import textwrap

    import weight_averaging

    code = textwrap.dedent(weight_averaging.__doc__.split("training loop:\n")[1].split("Training never sees")[0])
    model = scalar_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    evaluated = []

    def train_on(batch):
        optimizer.zero_grad()
        (model.weight - batch).pow(2).sum().backward()

    names = {
        "model": model,
        "optimizer": optimizer,
        "batches": [torch.randn(()) for _ in range(1500)],
        "train_on": train_on,
        "evaluate": lambda m: evaluated.append(m.weight.item()),
    }
    exec(code, names)
    assert len(evaluated) == 3
    assert names["lawa"].snapshot_steps == list(range(1443, 1501, 3))  # 4 % of 1,500
    assert evaluated[-1] != model.weight.item()


def test_without_the_check_the_average_is_the_same_and_a_nan_is_taken_in():
    model = model_of()
    averagers = [EMA(model, decay=0.7, check_finite=False), LAWA(model, interval=1, window=2, check_finite=False)]
    checked = [EMA(model, decay=0.7), LAWA(model, interval=1, window=2)]
    for step in (1, 2, 3):
        randomise(model, step)
        for averager in averagers + checked:
            averager.update(step)
    for averager, other in zip(averagers, checked, strict=True):
        np.testing.assert_array_equal(value_of(averager, model), value_of(other, model))
    floats(model)[0].detach().view(-1)[0] = float("nan")
    assert [averager.update(4) for averager in averagers] == [True, True]
    assert np.isnan(value_of(averagers[0], model)).sum() == 1


def test_the_repr_tells_what_it_holds():
    model = scalar_model()
    lawa, ema = LAWA(model, interval=2, window=3), EMA(model, decay=0.5)
    assert repr(lawa) == "LAWA(window=3, interval=2, start=1; holds 0, 16 B on cpu; not ready)"
    for averager in (lawa, ema):
        feed(averager, model, [1.0, 2.0, 3.0, 4.0])
    assert repr(lawa) == "LAWA(window=3, interval=2, start=1; holds 2, the last of update 4, 16 B on cpu; not ready)"
    assert repr(ema) == "EMA(decay=0.5, interval=1, start=1; holds 1, the last of update 4, 8 B on cpu; ready)"
    with ema.averaged():
        assert repr(ema).endswith("; in the model)")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(1, 5), st.integers(1, 20), st.integers(0, 40))
def test_when_it_will_be_ready_is_told(interval, window, start, asked_at):
    model = scalar_model()
    lawa = LAWA(model, interval=interval, window=window, start=start)
    told = None
    for step in range(1, 100):
        if step - 1 == asked_at and not lawa.ready:
            told = lawa._ready_at()
        lawa.update(step)
        if lawa.ready:
            assert told in (None, step)
            return
    raise AssertionError("never ready")


def test_averages_for_a_run_of_known_length():
    model = scalar_model()
    lawa, ema = LAWA.for_run(model, 5000, horizon=0.04), EMA.for_run(model, 5000, horizon=0.04, start=3)
    assert (lawa.interval, lawa.window) == (10, 20)
    assert (ema.interval, ema.decay, ema.start) == (10, 19 / 21, 3)
    assert LAWA.for_run(model, 100, horizon=0.01).window == 1
    for total in (100, 3000, 9999, 10_000, 120_000):  # by default what `suggest` says
        hint, lawa, ema = suggest(total), LAWA.for_run(model, total), EMA.for_run(model, total)
        assert (lawa.interval, lawa.window) == (hint.interval, hint.window)
        assert (ema.interval, ema.decay) == (hint.interval, hint.decay)
    for arguments, message in (
        ({"total_updates": 0}, "total_updates must be a whole number >= 1, not 0"),
        ({"total_updates": 100, "horizon": 2}, "horizon must be a share of training"),
    ):
        with pytest.raises(ValueError, match=message):
            LAWA.for_run(model, **arguments)
