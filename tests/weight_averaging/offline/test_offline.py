"""Offline averages are what the online averagers hold."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import weight_averaging.offline.passes.one_pass as module
import weight_averaging.torch.model.blocks as blocks
from weight_averaging import offline
from weight_averaging.offline import EMA, LAWA, Average, Plan, Power, SnapshotError, Tail
from weight_averaging.torch import EMA as OnlineEMA
from weight_averaging.torch import LAWA as OnlineLAWA

TYPES = [torch.float32, torch.bfloat16, torch.float64]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "CPU_BLOCK", 7)
    monkeypatch.setattr(module, "BLOCK", 5)


def model_of(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2, bias=False)).to(dtype)


def run_of(steps: int, dtype: torch.dtype = torch.float32) -> dict[int, dict[str, torch.Tensor]]:
    """A snapshot after every update, among them large and tiny values."""
    model = model_of(dtype)
    snapshots = {}
    for step in range(1, steps + 1):
        generator = torch.Generator().manual_seed(step)
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                values = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(values * 10 ** (6 * torch.rand(tensor.shape, generator=generator) - 3))
            else:
                tensor.fill_(step)
        snapshots[step] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return snapshots


def online(averager, model: nn.Module, snapshots: dict, at: int) -> dict[str, torch.Tensor] | None:
    """The model's weights as the averager would have them evaluated at step `at`."""
    for step in range(1, at + 1):
        model.load_state_dict(snapshots[step])
        averager.update(step)
    with averager.averaged() as swapped:
        return {name: tensor.clone() for name, tensor in model.state_dict().items()} if swapped else None


def assert_equal(one: dict, other: dict) -> None:
    assert list(one) == list(other)
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert torch.equal(one[name], other[name]), name


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_lawa_and_ema_are_bit_for_bit_those_of_the_online_averagers(data):
    dtype = data.draw(st.sampled_from(TYPES))
    steps = data.draw(st.integers(1, 16))
    snapshots = run_of(steps, dtype)
    wanted, expected = [], []
    for _ in range(data.draw(st.integers(1, 6))):
        interval, start = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
        at = data.draw(st.integers(1, steps))
        model = model_of(dtype)
        if data.draw(st.booleans()):
            window = data.draw(st.integers(1, 5))
            average = LAWA(window=window, interval=interval, start=start)
            averager = OnlineLAWA(model, window=window, interval=interval, start=start)
        else:
            decay = data.draw(st.sampled_from([0.0, 0.2, 0.5, 0.9, 0.99]))
            average = EMA(decay=decay, interval=interval, start=start)
            averager = OnlineEMA(model, decay=decay, interval=interval, start=start)
        held = online(averager, model, snapshots, at)
        if held is None:  # not ready: no average online, and an error offline
            with pytest.raises(SnapshotError, match=f"at step {at} needs"):
                Plan([(average, at)], range(1, steps + 1))
        else:
            wanted.append((average, at))
            expected.append(held)
    results = {(r.average, r.step): r.state for r in Plan(wanted, range(1, steps + 1)).run(snapshots.items())}
    assert results.keys() == set(wanted)
    for pair, held in zip(wanted, expected):
        if dtype == torch.float64:  # online all of a model is float64 then, here each tensor is by itself
            for name, tensor in held.items():
                close = 1e-13 if tensor.dtype == torch.float64 else 1e-6
                torch.testing.assert_close(results[pair][name], tensor, rtol=close, atol=close)
        else:
            assert_equal(results[pair], held)


@pytest.mark.parametrize("average", [LAWA(window=3), EMA(decay=0.5), Power(gamma=2.0), Tail(share=1.0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_float64_is_averaged_in_float64(average, dtype):
    small = [torch.tensor([1 + k * 1e-12, 2e-300, -123456.789012345], dtype=dtype) for k in range(3)]
    states = {step: {"w": value} for step, value in enumerate(small, start=1)}
    (result,) = Plan([(average, 3)], [1, 2, 3]).run(states.items())
    (parts,) = (list(results) for _, results in Plan([(average, 3)], [1, 2, 3]).run_parts([(0, states.items())]))
    expected = sum(c * value for c, value in zip(average.coefficients(3), small))
    for state in (result.state, parts[0].state):
        torch.testing.assert_close(state["w"], expected, rtol=1e-15, atol=0)
        assert state["w"][1].real > 0


@pytest.mark.parametrize("queued", [True, False])
def test_means_are_the_same_from_running_sums_and_from_held_snapshots(queued):
    snapshots = run_of(12)
    # Windows that end everywhere: the same few snapshots serve all of them. Windows apart: one sum serves.
    ends, windows = (range(5, 13), (2, 3, 4, 5)) if queued else ((5, 12), (4, 5))
    plan = Plan([(LAWA(window=window), end) for end in ends for window in windows], list(snapshots))
    assert bool(plan._work.held_until) == queued
    for result in plan.run(snapshots.items()):
        alone = next(Plan([(result.average, result.step)], list(snapshots)).run(snapshots.items()))
        assert_equal(result.state, alone.state)


def test_the_tail_is_the_lawa_of_as_many_snapshots():
    snapshots = run_of(12)
    tail, lawa = Plan([(Tail(share=0.25), 12), (LAWA(window=3), 12)], list(snapshots)).run(snapshots.items())
    assert_equal(tail.state, lawa.state)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 20), st.integers(1, 12))
def test_the_power_function_average_follows_its_definition(gamma, count):
    snapshots = run_of(count)
    (result,) = Plan([(Power(gamma=gamma), count)], list(snapshots)).run(snapshots.items())
    for name, value in result.state.items():
        if value.is_floating_point():
            weights_of = torch.tensor([power_weight(k, count, gamma) for k in range(1, count + 1)]).double()
            assert math.isclose(float(weights_of.sum()), 1.0, rel_tol=1e-6)
            stacked = torch.stack([snapshots[k][name].double() for k in snapshots])
            direct = torch.tensordot(weights_of, stacked, 1)
            # One rounding of at most the largest value at each step.
            bound = count * 2.0**-23 * float(stacked.abs().max()) + 1e-6 * float(direct.abs().max())
            assert float((value.double() - direct).abs().max()) <= bound


def power_weight(k: int, count: int, gamma: float) -> float:
    betas = [(1 - 1 / j) ** (gamma + 1) for j in range(k, count + 1)]
    return (1 - betas[0]) * math.prod(betas[1:])


def test_many_results_share_one_pass_and_own_their_tensors():
    snapshots = run_of(8)
    reads = []

    def stream():
        for step, state in snapshots.items():
            reads.append(step)
            yield step, state

    wanted = [(EMA(decay=0.5), 4), (EMA(decay=0.5), 8), (LAWA(window=2), 8), (EMA(decay=0.9, interval=2), 7)]
    results = list(Plan(wanted, list(snapshots)).run(stream()))
    assert reads == list(snapshots)
    assert len(results) == 4
    for result in results:
        alone = next(Plan([(result.average, result.step)], list(snapshots)).run(snapshots.items()))
        assert_equal(result.state, alone.state)
    assert results[1].state["1.num_batches_tracked"].item() == 7  # the latest there is, not the latest taken in


@pytest.mark.parametrize("queued", [True, False])
def test_runs_of_one_plan_do_not_disturb_each_other(queued):
    """Two at a time, of other snapshots, beside one that was given up halfway and one in parts."""
    snapshots = run_of(12)
    others = {step: {name: tensor * 3 for name, tensor in state.items()} for step, state in snapshots.items()}
    ends, windows = (range(5, 13), (2, 3, 4, 5)) if queued else ((5, 12), (4, 5))
    lawas = [LAWA(window=window) for window in windows]
    wanted = [(average, end) for end in ends for average in (*lawas, EMA(decay=0.5))]
    plan = Plan(wanted, list(snapshots), latest=())
    assert bool(plan._work.held_until) == queued
    expected = {(r.average, r.step): r.state for r in Plan(wanted, list(snapshots), latest=()).run(snapshots.items())}
    tripled = {(r.average, r.step): r.state for r in Plan(wanted, list(snapshots), latest=()).run(others.items())}
    given_up = plan.run(others.items())
    next(given_up)
    ((_, in_parts),) = plan.run_parts([("all", snapshots.items())])
    results = list(zip(plan.run(snapshots.items()), plan.run(others.items()), in_parts, strict=True))
    assert len(results) == len(wanted)
    for one, other, part in results:
        pair = one.average, one.step
        assert pair == (other.average, other.step) == (part.average, part.step)
        assert_equal(one.state, expected[pair])
        assert_equal(other.state, tripled[pair])
        assert_equal(part.state, expected[pair])


def test_a_recursion_is_asked_for_weights_from_the_second_snapshot_on():
    @dataclass(frozen=True, kw_only=True)
    class Harmonic(Average):
        is_recursive = True

        def weight(self, number, functions=None):
            return 1 / (number - 1)  # none for the first, which starts it

    snapshots = run_of(5)
    (result,) = Plan([(Harmonic(), 5)], list(snapshots)).run(snapshots.items())
    value = snapshots[1]["0.weight"].double()
    for number in range(2, 6):
        value += (snapshots[number]["0.weight"].double() - value) / (number - 1)
    torch.testing.assert_close(result.state["0.weight"].double(), value, rtol=1e-5, atol=1e-4)


def test_as_many_snapshots_are_held_as_told():
    snapshots = run_of(12)
    plan = Plan([(LAWA(window=window), end) for end in range(5, 13) for window in (2, 3, 4, 5)], list(snapshots))
    one = module.Pass(plan._work, module.Memory(again=False), module.Unchanging(()))
    assert max(len(one._held) for _ in one.run(snapshots.items())) == plan.peak == 5
    assert not one._held


def test_memory_is_told_beforehand():
    steps = range(10, 1010, 10)
    assert Plan([(LAWA(window=8), 1000)], steps).peak == 1
    assert Plan([(LAWA(window=20), 1000)], steps).peak == 2  # two partial sums
    assert Plan([(LAWA(window=w, interval=i), 1000) for w in (5, 10) for i in (10, 20, 50)], steps).peak == 9
    assert Plan([(LAWA(window=w), at) for w in (5, 10, 20) for at in range(200, 1001, 10)], steps).peak == 20
    assert Plan([(EMA(decay=0.9), at) for at in range(100, 1001, 10)], steps).peak == 1


def test_snapshots_may_be_wrapped_and_the_names_are_those_of_the_latest():
    plain, wrapped = run_of(3), {s: {f"module._orig_mod.{n}": t for n, t in st.items()} for s, st in run_of(3).items()}
    for latest, other in ((plain, wrapped), (wrapped, plain)):
        mixed = {1: other[1], 2: latest[2], 3: latest[3]}
        (result,) = Plan([(LAWA(window=3), 3)], [1, 2, 3]).run(mixed.items())
        assert list(result.state) == list(latest[3])
        (expected,) = Plan([(LAWA(window=3), 3)], [1, 2, 3]).run(plain.items())
        assert_equal(dict(zip(expected.state, result.state.values())), expected.state)


def test_a_mask_of_infinities_stays_and_a_nan_is_an_error():
    snapshots = run_of(3)
    for state in snapshots.values():
        state["mask"] = torch.tensor([0.0, -math.inf])
    (result,) = Plan([(LAWA(window=3), 3)], [1, 2, 3]).run(snapshots.items())
    assert torch.equal(result.state["mask"], torch.tensor([0.0, -math.inf]))
    snapshots[2]["0.weight"][1, 1] = math.nan
    with pytest.raises(SnapshotError, match=r"step 2: 0\.weight holds a NaN"):
        list(Plan([(LAWA(window=3), 3)], [1, 2, 3]).run(snapshots.items()))


def test_a_gap_names_the_nearest_usable_intervals():
    steps = range(100, 1001, 100)
    with pytest.raises(SnapshotError) as error:
        Plan([(LAWA(window=3, interval=150), 1000)], steps)
    message = str(error.value)
    assert "lawa window=3 interval=150 at step 1000 needs the snapshot of step 750, which was not saved" in message
    assert "usable intervals nearest to it: 200, 100, 300" in message
    with pytest.raises(
        SnapshotError, match=r"needs 11 snapshots, but there are 10 up to there \(100, 200, ..., 1000\)"
    ):
        Plan([(LAWA(window=11), 1000)], steps)
    with pytest.raises(SnapshotError, match="no interval does"):
        Plan([(LAWA(window=2, interval=7), 1000)], [501, 1000])


def test_unlike_snapshots_are_refused():
    for change, says in [
        (lambda s: s.pop("0.bias"), "it has no 0.bias"),
        (lambda s: s.update(more=torch.ones(1)), "it has more besides"),
        (lambda s: s.update({"0.bias": torch.ones(6)}), r"0.bias is float32 \[6\], not float32 \[5\]"),
        (lambda s: s.update({"0.bias": torch.ones(5).double()}), r"0.bias is float64 \[5\], not float32 \[5\]"),
    ]:
        snapshots = run_of(3)
        change(snapshots[2])
        with pytest.raises(SnapshotError, match="step 2 does not fit that of step 1: " + says):
            list(Plan([(LAWA(window=3), 3)], [1, 2, 3]).run(snapshots.items()))


def test_a_stream_that_lacks_a_snapshot_is_refused():
    snapshots = run_of(3)
    for left_out, says in [(2, "step 2 did not come before that of step 3"), (3, "step 3 is needed and did not come")]:
        stream = [(step, state) for step, state in snapshots.items() if step != left_out]
        with pytest.raises(SnapshotError, match=says):
            list(Plan([(LAWA(window=3), 3)], [1, 2, 3]).run(stream))


@pytest.mark.parametrize(
    "make",
    [
        lambda: LAWA(window=0), lambda: EMA(decay=1.0), lambda: Tail(share=0), lambda: Power(gamma=-1),
        lambda: LAWA(window=2, interval=0), lambda: offline.EMA(decay=0.5, start=-1),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()
