"""Weights that are checked without a wait: what is taken in and dropped later is as if it had been refused at once.

On the CPU the answer could be had at once; here it is put off as on an accelerator. On a GPU where there is one.
"""

import copy
import logging
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.small_models import flat, model_of, randomise, saved, value_of
from tests.weight_averaging.torch.memory.test_host_copies import LateStreams
from weight_averaging import averages
from weight_averaging.torch import EMA, LAWA, Averages
from weight_averaging.torch.memory.host_copies import HostCopies
from weight_averaging.torch.tracks import exponential

GRID = [
    averages.LAWA(window=2, interval=1),
    averages.LAWA(window=3, interval=2),
    averages.EMA(decay=0.5, interval=1),
    averages.Power(gamma=3.0, interval=2),
]
MAKERS = {
    "lawa": lambda model: LAWA(model, interval=2, window=3),
    "lawa, partial": lambda model: LAWA(model, interval=1, window=2, allow_partial=True),
    "ema": lambda model: EMA(model, decay=0.7, interval=2),
    "ema, warmup": lambda model: EMA(model, decay=0.99, warmup=True, start=3),
    "grid": lambda model: Averages(model, GRID),
}
ACTIONS = ["update"] * 5 + ["nan", "inf", "ready", "evaluate", "save", "load", "copy"]


class Deferring:
    """`defers` for a test: the averagers made and used while it is `on` ask later."""

    def __init__(self, patch):
        self.on = False
        patch.setattr("weight_averaging.torch.collector.defers", lambda device: self.on)


def late_copies(averager):
    """Its vectors as if in another memory than the model's, with copies as late as they may come."""
    shared = HostCopies(LateStreams())
    for track in averager._tracks:
        track._copies = shared
        if hasattr(track, "_copied"):
            track._copied = torch.empty_like(track._ema)
    return averager


def spoil(model, value):
    with torch.no_grad():
        model[2].weight[1, 3] = value


def observed(averager):
    if isinstance(averager, Averages):
        found = []
        for average in averager.averages:
            averager.select(average)
            found.append((averager.ready, averager.snapshot_steps))
        return found
    return averager.ready, averager.snapshot_steps


def values(averager, model):
    if not isinstance(averager, Averages):
        return [value_of(averager, model)]
    return [(averager.select(average), value_of(averager, model))[1] for average in averager.averages]


def trajectory(make, actions, deferring, late, records):
    """All that can be seen of an averager along the actions, and the steps that were warned of."""
    deferring.on = late is not None
    model = model_of()
    averager = (late or (lambda a: a))(make(model))
    seen, step = [], 0
    records.clear()
    for action in actions:
        if action in ("update", "nan", "inf"):
            step += 1
            randomise(model, step)
            if action != "update":
                spoil(model, float(action))
            averager.update(step)
            randomise(model, 1000 + step)  # training goes on: the model tells nothing of the snapshot any more
        elif action == "ready":
            seen.append(observed(averager))
        elif action == "evaluate":
            seen.append(values(averager, model))
        elif action == "save":
            state = saved(averager)
            seen += [track["vectors"] for track in state["tracks"]]
            seen += [(track["snapshot_steps"], track["count"]) for track in state["tracks"]]
        elif action == "load":
            state = saved(averager)
            averager = (late or (lambda a: a))(make(model))
            averager.load_state_dict(state)
        elif action == "copy":
            model, averager = copy.deepcopy((model, averager))
    seen += [observed(averager), values(averager, model), flat(model)]
    warned = [int(m[1]) for r in records if (m := re.match(r"step (\d+): weights are not finite", r.getMessage()))]
    return seen, warned


def same(one, other):
    assert type(one) is type(other)
    if isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same(a, b)
    else:
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("place", ["the same memory", "another memory"])
@pytest.mark.parametrize("kind", MAKERS)
def test_a_snapshot_dropped_later_is_as_if_refused_at_once(kind, place, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "weight_averaging")
    deferring = Deferring(monkeypatch)
    late = late_copies if place == "another memory" else lambda averager: averager

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.sampled_from(ACTIONS), max_size=16))
    def check(actions):
        actions = [a for a in actions if a != "copy"] if place == "another memory" else actions
        later, warned_later = trajectory(MAKERS[kind], actions, deferring, late, caplog.records)
        at_once, warned = trajectory(MAKERS[kind], actions, deferring, None, caplog.records)
        same(later, at_once)
        assert warned_later == warned

    check()


def test_the_answer_is_put_off_at_all(monkeypatch):
    deferring = Deferring(monkeypatch)
    deferring.on = True
    model = model_of()
    lawa = LAWA(model, interval=1, window=2)
    randomise(model, 1)
    assert lawa.update(1)
    spoil(model, float("nan"))
    assert lawa.update(2)  # not known yet
    assert lawa._tracks[0].steps == [1, 2]
    assert lawa.snapshot_steps == [1]
    assert len(lawa._tracks[0].slots()) == 3  # a spare one
    assert len(saved(lawa)["tracks"][0]["vectors"]) == 1


@pytest.mark.parametrize("forget", ["settle", "mask"])
def test_a_bad_snapshot_would_be_noticed(forget, monkeypatch):
    """The first test would fail if the answer were never read, or an EMA took in what is bad."""
    deferring = Deferring(monkeypatch)
    deferring.on = True
    model = model_of()
    ema = EMA(model, decay=0.5)
    randomise(model, 1)
    ema.update(1)
    before = value_of(ema, model)
    if forget == "settle":
        monkeypatch.setattr(EMA, "_settle", lambda self: None)
    else:
        monkeypatch.setattr(
            exponential, "lerp_if", lambda good, own, parts, weight: torch._foreach_lerp_(own, parts, weight)
        )
    spoil(model, float("nan"))
    ema.update(2)
    if forget == "settle":
        assert ema.snapshot_steps == [2]
    else:
        assert not np.array_equal(value_of(ema, model), before)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["lawa", "ema", "grid"])
def test_bad_weights_are_dropped_on_cuda(kind):
    model, twin = model_of(), model_of().cuda()
    plain, later = MAKERS[kind](model), MAKERS[kind](twin)
    for step in range(1, 12):
        for m in (model, twin):
            randomise(m, step)
            if step in (4, 5, 8):
                spoil(m, float("nan"))
        plain.update(step)
        later.update(step)
    randomise(model, 12)
    randomise(twin, 12)
    assert observed(later) == observed(plain)
    for mine, theirs in zip(values_on_cpu(later, twin), values(plain, model), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-7)


def values_on_cpu(averager, model):
    found = []
    for average in getattr(averager, "averages", [None]):
        if average is not None:
            averager.select(average)
        with averager.averaged():
            found.append(flat(copy.deepcopy(model).cpu()))
    return found


@settings(max_examples=100, deadline=None)
@given(st.floats(0.001, 0.999), st.lists(st.integers(0, 40), min_size=1, max_size=4), st.booleans(), st.integers(0, 99))
def test_lerp_if_is_lerp_or_nothing(weight, sizes, good, seed):
    generator = torch.Generator().manual_seed(seed)
    own, parts = ([torch.randn(size, generator=generator) for size in sizes] for _ in range(2))
    expected = [a.lerp(b, weight) if good else a.clone() for a, b in zip(own, parts, strict=True)]
    if not good:
        parts[0].fill_(float("nan"))
    exponential.lerp_if(torch.tensor(good), own, parts, weight)
    for mine, theirs in zip(own, expected, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("kind", ["lawa, partial", "ema"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("large", [1e16, 3e18, 1e30, 1e38])
def test_large_weights_are_finite_in_one_block_and_in_several(kind, layers, large):
    """Whose squares are not."""
    model = torch.nn.ModuleList(torch.nn.Linear(1024, 1024, bias=False) for _ in range(layers))
    averager = MAKERS[kind](model)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, large)
    assert [averager.update(step) for step in (1, 2)].count(True)
    with averager.averaged() as ready:
        assert ready
        assert torch.isfinite(model[0].weight).all()
    torch.nn.init.constant_(model[layers - 1].weight[7], float("inf"))
    assert not averager.update(4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_large_weights_are_finite_on_cuda():
    model = torch.nn.Linear(1024, 1024, bias=False, device="cuda")
    torch.nn.init.constant_(model.weight, 3e38)
    lawa = LAWA(model, interval=1, window=1)
    lawa.update(1)
    assert lawa.ready
    for bad in (float("inf"), float("nan")):
        torch.nn.init.constant_(model.weight[3], bad)
        lawa.update(lawa.step + 1)
        assert lawa.snapshot_steps == [1]
