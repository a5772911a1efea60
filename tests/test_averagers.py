"""The averagers against slow references, and every way in which earlier implementations went wrong."""

import io
import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import weight_averaging.torch.weights as weights
from tests import reference
from weight_averaging.torch import EMA, LAWA


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Blocks of a few elements, so that small models have many and every way of cutting occurs."""
    monkeypatch.setattr(weights, "CPU_BLOCK", 7)


def model_of(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2, bias=False)).to(dtype)


def randomise(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in floats(model):
            tensor.copy_(torch.randn(tensor.shape, generator=generator))


def floats(model: nn.Module) -> list[torch.Tensor]:
    return [t for t in [*model.parameters(), *model.buffers()] if t.is_floating_point()]


def flat(model: nn.Module) -> np.ndarray:
    return torch.cat([t.detach().double().reshape(-1) for t in floats(model)]).numpy()


def value_of(averager, model) -> np.ndarray:
    with averager.averaged():
        return flat(model)


def saved(averager) -> dict:
    """The state after a trip through a file that may hold nothing but tensors and plain values."""
    file = io.BytesIO()
    torch.save(averager.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


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


def scalar_model(dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.Linear(1, 1, bias=False).to(dtype)


def feed(averager, model, values, first_step=1):
    for step, value in enumerate(values, start=first_step):
        with torch.no_grad():
            model.weight.fill_(value)
        averager.update(step)


def average_of(averager, model) -> float:
    with averager.averaged():
        return model.weight.item()


# The traps, numbered as in the project's notes on earlier implementations.


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
    averagers = [LAWA(model, interval=1, window=2, device="cpu"), EMA(model, decay=0.5, device="cpu")]
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
    with caplog.at_level(logging.INFO, "weight_averaging"):
        for _ in range(2):
            with lawa.averaged() as swapped:
                assert not swapped
                assert model.weight.item() == 7.0
    assert [record.getMessage() for record in caplog.records] == [
        "LAWA is not ready at step 0: the raw weights are evaluated"
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_trap_10_a_host_window_stays_on_the_host_whatever_the_map_location():
    model = scalar_model().cuda()
    lawa = LAWA(model, interval=1, window=2, device="cpu")
    feed(lawa, model, [1.0, 2.0])
    state = {k: [v.cuda() for v in value] if k == "vectors" else value for k, value in lawa.state_dict().items()}
    lawa.load_state_dict(state)
    assert all(vector.device.type == "cpu" for vector in lawa.state_dict()["vectors"])


def test_trap_10_loaded_vectors_are_copied_to_where_the_averager_lives():
    model = scalar_model()
    lawa = LAWA(model, interval=1, window=2, device="cpu")
    feed(lawa, model, [1.0, 2.0])
    state = lawa.state_dict()
    state["vectors"] = [vector.double() for vector in state["vectors"]]  # as from a file, of whatever kind
    lawa.load_state_dict(state)
    state["vectors"][0].zero_()
    assert [(v.dtype, v.device.type) for v in lawa.state_dict()["vectors"]] == [(torch.float32, "cpu")] * 2
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
    wrapped = nn.ModuleDict({"module": nn.ModuleDict({"_orig_mod": inner})})
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
    with pytest.raises(ValueError, match="it has no window"):
        LAWA(model, interval=4, window=2).load_state_dict(state)


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
    assert names["lawa"].snapshot_steps == [64 * k for k in range(4, 24)]
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
