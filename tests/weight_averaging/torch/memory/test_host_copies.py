"""Copies that go on beside training: the order of events, on a stand-in for CUDA that puts off every copy as long as it
is allowed to, and on a GPU where there is one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.small_models import flat, model_of, randomise, value_of
from weight_averaging import averages
from weight_averaging.torch import EMA, LAWA, Averages
from weight_averaging.torch.memory.host_copies import HostCopies, NoStreams


class LateStreams:
    """A device whose side stream makes no copy before somebody waits for it."""

    def __init__(self) -> None:
        self.queue: list = []
        self.done = 0

    def copy(self, into, source):
        self.queue.append((into, source))
        return len(self.queue)

    def wait(self, event):
        for into, source in self.queue[self.done : event]:
            into.copy_(source)
        self.done = max(self.done, event)

    hold_training = wait  # what the training stream does next happens at once here

    @property
    def outstanding(self):
        return len(self.queue) - self.done


@pytest.mark.parametrize("kind", ["lawa", "ema"])
def test_an_accelerator_without_streams_has_its_average_on_the_host(kind):
    model = model_of()
    averager = LAWA(model, interval=1, window=2) if kind == "lawa" else EMA(model, decay=0.5)
    (track,) = averager._tracks
    track._copies = HostCopies(NoStreams())
    if kind == "ema":
        track._copied = torch.empty_like(track._ema)
    plain = LAWA(model, interval=1, window=2) if kind == "lawa" else EMA(model, decay=0.5)
    for step in range(1, 5):
        randomise(model, step)
        averager.update(step)
        plain.update(step)
        np.testing.assert_allclose(value_of(averager, model), value_of(plain, model), rtol=1e-6, atol=1e-7)


def late_lawa(model, streams, **options):
    """A LAWA whose window is in another memory than the model."""
    lawa = LAWA(model, interval=1, **options)
    lawa._tracks[0]._copies = HostCopies(streams)
    return lawa


def sequence(streams, actions, dtype=torch.float32):
    """What a LAWA with late copies and a plain one hold after the same actions."""
    model = model_of(dtype=dtype)
    late, plain = late_lawa(model, streams, window=3), LAWA(model, interval=1, window=3)
    seen = []
    step = 0
    for action in actions:
        if action == "update":
            step += 1
            randomise(model, step)
            late.update(step)
            plain.update(step)
        elif action == "evaluate":
            seen.append((value_of(late, model), value_of(plain, model)))
            assert streams.outstanding == 0, "a copy is under way after the swap"
        else:
            states = [lawa.state_dict()["tracks"][0]["vectors"] for lawa in (late, plain)]
            seen += [(a.numpy().copy(), b.numpy().copy()) for a, b in zip(*states, strict=True)]
        seen.append((flat(model), flat(model)))
    seen.append((value_of(late, model), value_of(plain, model)))
    return seen


ACTIONS = st.lists(st.sampled_from(["update", "update", "update", "evaluate", "save"]), max_size=12)


@settings(max_examples=60, deadline=None)
@given(ACTIONS, st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_trap_11_late_copies_hold_what_blocking_ones_hold(actions, dtype):
    for late, plain in sequence(LateStreams(), actions, dtype):
        np.testing.assert_array_equal(late, plain)


@pytest.mark.parametrize("missing", ["hold_training", "wait"])
def test_trap_11_a_missing_wait_is_noticed(missing):
    """The test above would fail if training overwrote the buffer at once, or if a window were read too soon."""
    streams = LateStreams()
    setattr(streams, missing, lambda event: None)
    pairs = sequence(streams, ["update"] * 4 + ["save"])
    assert not all(np.array_equal(late, plain) for late, plain in pairs)


def grid_values(copies_of):
    """Two windows that are due together and apart, the copies of each made by `copies_of(its number)`."""
    model = model_of()
    wanted = [averages.LAWA(window=3, interval=1), averages.LAWA(window=2, interval=2)]
    late, plain = Averages(model, wanted), Averages(model, wanted)
    for number, track in enumerate(late._tracks):
        track._copies = copies_of(number)
    for step in range(1, 8):
        randomise(model, step)
        late.update(step)
        plain.update(step)
    values = []
    for average in wanted:
        for grid in (late, plain):
            grid.select(average)
        values.append((value_of(late, model), value_of(plain, model)))
    return values


def test_windows_that_share_a_buffer_share_the_order_of_their_copies():
    shared = HostCopies(LateStreams())
    for late, plain in grid_values(lambda number: shared):
        np.testing.assert_array_equal(late, plain)
    apart = [HostCopies(LateStreams()), HostCopies(LateStreams())]  # neither knows what the other still copies
    assert not all(np.array_equal(late, plain) for late, plain in grid_values(lambda number: apart[number]))


def test_two_copies_of_one_snapshot_do_not_hold_training():
    streams, fills = LateStreams(), []
    copies = HostCopies(streams)
    buffer = torch.zeros(2)
    for step in (1, 1, 2):
        copies.begin(step, lambda: fills.append(1) or buffer, torch.empty(2))
    assert len(fills) == 2
    assert streams.done == 2  # those of step 1 had to end before the buffer was filled again
    copies.finish()
    copies.begin(2, lambda: fills.append(1) or buffer, torch.empty(2))  # after a load, say: another snapshot
    assert len(fills) == 3


def test_copies_are_put_off_at_all():
    streams = LateStreams()
    model = model_of()
    lawa = late_lawa(model, streams, window=2)
    lawa.update(1)
    assert streams.outstanding == 1
    lawa.swap_in()  # not ready: the raw weights are evaluated, and still nothing goes on meanwhile
    assert streams.outstanding == 0


@pytest.mark.gpu
def test_trap_11_on_cuda_with_a_slow_copy(monkeypatch):
    from weight_averaging.torch.memory import host_copies

    class SlowStreams(host_copies.CudaStreams):
        def copy(self, into, source):
            with torch.cuda.stream(self._side):
                torch.cuda._sleep(200_000_000)  # cycles: about a tenth of a second
            return super().copy(into, source)

    monkeypatch.setattr("weight_averaging.torch.tracks.make.CudaStreams", SlowStreams)
    model = torch.nn.Linear(1000, 1000).cuda()
    host, device = (LAWA(model, interval=1, window=3, placement=place) for place in ("host", "device"))
    assert host.state_dict()["tracks"][0]["vectors"] == []
    for step in range(1, 6):
        with torch.no_grad():
            model.weight.normal_()
        host.update(step)
        device.update(step)
    with host.averaged():
        late = model.weight.clone()
    with device.averaged():
        torch.testing.assert_close(late, model.weight, rtol=1e-6, atol=1e-6)
    assert [vector.is_pinned() for vector in host.state_dict()["tracks"][0]["vectors"]] == [True] * 3
