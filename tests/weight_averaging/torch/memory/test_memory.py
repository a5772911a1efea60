"""Memory that an averager must own alone: loading from itself, copies of all kinds, torch.inference_mode."""

import copy
import io
import multiprocessing
import pickle

import cloudpickle
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.support.small_models import average_of, feed, flat, model_of, randomise, saved, scalar_model, value_of
from weight_averaging import averages
from weight_averaging.torch import EMA, LAWA, Averages

GRID = [averages.LAWA(window=3, interval=1), averages.LAWA(window=2, interval=2), averages.EMA(decay=0.5, interval=1)]
MAKERS = {
    "lawa": lambda model: LAWA(model, interval=1, window=3),
    "lawa, partial": lambda model: LAWA(model, interval=1, window=5, allow_partial=True),
    "ema": lambda model: EMA(model, decay=0.5),
    "grid": lambda model: Averages(model, GRID),
}
KINDS = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def test_a_ring_loaded_from_itself_keeps_its_mean():
    model = scalar_model()
    lawa = LAWA(model, interval=1, window=3)
    feed(lawa, model, [1.0, 2.0, 3.0, 4.0])
    lawa.load_state_dict(lawa.state_dict())
    assert average_of(lawa, model) == 3.0
    assert lawa.snapshot_steps == [2, 3, 4]
    feed(lawa, model, [8.0], first_step=5)
    assert average_of(lawa, model) == 5.0


@KINDS
@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(["update", "update", "reload", "reload swapped", "load a copy"]), max_size=12))
def test_loading_its_own_state_changes_nothing(make, actions):
    model, twin = model_of(), model_of()
    averager, other = make(model), make(twin)
    for step, action in enumerate(actions, start=1):
        for m, a in ((model, averager), (twin, other)):
            randomise(m, step)
            a.update(step)
        if action == "reload swapped":
            averager.swap_in()
        if action.startswith("reload"):
            averager.load_state_dict(averager.state_dict())
        if action == "load a copy":
            averager.load_state_dict(saved(averager))
        assert not averager.swapped
        np.testing.assert_array_equal(flat(model), flat(twin))
        np.testing.assert_array_equal(value_of(averager, model), value_of(other, twin))


@KINDS
def test_a_state_that_was_not_copied_and_overwritten_since_is_refused(make):
    model = scalar_model()
    averager = make(model)
    feed(averager, model, [1.0, 2.0, 3.0])
    state, kept = averager.state_dict(), copy.deepcopy(averager.state_dict())
    feed(averager, model, [7.0, 9.0, 11.0, 13.0, 15.0], first_step=4)
    with pytest.raises(ValueError, match=r"was not copied, and training has gone on since.*deepcopy"):
        averager.load_state_dict(state)
    averager.load_state_dict(kept)
    twin = scalar_model()
    other = make(twin)
    feed(other, twin, [1.0, 2.0, 3.0])
    assert average_of(averager, model) == average_of(other, twin)


@KINDS
@pytest.mark.parametrize("swapped_state", [False, True])
def test_loading_while_the_average_is_in_the_model_loses_no_raw_weights(make, swapped_state):
    model = scalar_model()
    averager = make(model)
    feed(averager, model, [1.0, 2.0, 3.0])
    if swapped_state:
        averager.swap_in()
    state = saved(averager)
    averager.swap_out()
    feed(averager, model, [7.0], first_step=4)
    assert averager.swap_in()
    averager.load_state_dict(state)
    assert not averager.swapped
    # The raw weights of now; or those of the state, which has them because the model's checkpoint of then has not.
    assert model.weight.item() == (3.0 if swapped_state else 7.0)


@KINDS
def test_raw_weights_that_were_not_copied_and_overwritten_since_are_refused(make):
    """A state that was taken while swapped has the raw weights of then in the averager's own memory."""
    model = scalar_model()
    averager = make(model)
    feed(averager, model, [1.0, 2.0, 3.0])
    averager.swap_in()
    state = averager.state_dict()
    state["tracks"] = copy.deepcopy(state["tracks"])  # all but the raw weights
    averager.swap_out()
    feed(averager, model, [7.0], first_step=4)
    averager.swap_in()
    with pytest.raises(ValueError, match=r"was not copied, and training has gone on since.*deepcopy"):
        averager.load_state_dict(state)
    averager.swap_out()
    assert model.weight.item() == 7.0


def test_a_load_that_fails_while_swapped_changes_nothing():
    model = scalar_model()
    ema = EMA(model, decay=0.5)
    feed(ema, model, [1.0, 3.0])
    ema.swap_in()
    with pytest.raises(ValueError, match="the averager is an EMA"):
        ema.load_state_dict(LAWA(model, interval=1, window=2).state_dict())
    assert ema.swapped
    assert model.weight.item() == 2.0
    ema.swap_out()
    assert model.weight.item() == 3.0


def torch_file(pair):
    file = io.BytesIO()
    torch.save(pair, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "pickle": lambda pair: pickle.loads(pickle.dumps(pair)),
    "cloudpickle": lambda pair: cloudpickle.loads(cloudpickle.dumps(pair)),
    "deepcopy": copy.deepcopy,
    "torch.save": torch_file,
}


@KINDS
@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("before", [0, 2, 4])
def test_a_copy_goes_on_as_the_original_would_and_neither_disturbs_the_other(make, copied, swapped, before):
    model = model_of()
    averager = make(model)
    for step in range(1, before + 1):
        randomise(model, step)
        averager.update(step)
    if swapped:
        averager.swap_in()
    other_model, other = copied((model, averager))
    values = []
    for step in range(before + 1, before + 4):
        for m, a in ((model, averager), (other_model, other)):
            a.swap_out()
            randomise(m, 100 * step + (m is other_model))  # other weights, so that sharing anything would show
            a.update(step)
    for m, a, offset in ((model, averager, 0), (other_model, other, 1)):
        expected_model = model_of()
        expected = make(expected_model)
        for step in range(1, before + 4):
            randomise(expected_model, step if step <= before else 100 * step + offset)
            expected.update(step)
        values.append(value_of(a, m))
        np.testing.assert_array_equal(values[-1], value_of(expected, expected_model))
        assert a.snapshot_steps == expected.snapshot_steps
    assert not np.array_equal(*values)


def child(pair, connection):
    """Goes on by three snapshots of its own, once the parent has gone on by its."""
    model, averager = pair
    connection.recv()
    feed(averager, model, [10.0, 20.0, 30.0], first_step=5)
    connection.send(average_of(averager, model))


def test_a_spawned_process_goes_on_by_itself():
    """torch sends tensors to other processes as shared memory; those of an averager are copies."""
    model = scalar_model()
    lawa = LAWA(model, interval=1, window=4)
    feed(lawa, model, [1.0, 2.0, 3.0, 4.0])
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=child, args=((model, lawa), there))
    process.start()
    feed(lawa, model, [100.0, 200.0], first_step=5)
    here.send("go")
    assert here.poll(300), "the child did not answer"
    assert here.recv() == (4.0 + 10.0 + 20.0 + 30.0) / 4
    process.join(300)
    assert lawa.snapshot_steps == [3, 4, 5, 6]
    assert average_of(lawa, model) == (3.0 + 4.0 + 100.0 + 200.0) / 4


def test_an_averager_with_a_process_group_is_not_copied():
    lawa = LAWA(scalar_model(), interval=1, window=2)
    lawa._ranks.group = object()
    with pytest.raises(TypeError, match="with a process_group cannot be pickled or deep-copied: use its state_dict"):
        copy.deepcopy(lawa)


STEPS = [
    "make",
    "update",
    "swap_in",
    "swap_out",
    "state_dict",
    "load_state_dict",
    "average_state_dict",
    "copy_to",
    "copy",
]


@KINDS
@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.booleans()), min_size=4, max_size=14), st.booleans())
def test_inference_mode_may_be_on_at_any_call(make, calls, born_in_inference_mode):
    """Evaluation loops turn it on, and memory that is made in it cannot be changed outside of it."""
    model = model_of()
    with torch.inference_mode(born_in_inference_mode):
        averager = make(model)
    twin = model_of()
    plain = make(twin)
    step = 0
    for name, inference in calls:
        step += name == "update"
        model, averager = call(name, model, averager, make, step, inference)
        twin, plain = call(name, twin, plain, make, step, False)
        np.testing.assert_array_equal(flat(model), flat(twin))
    for m, a in ((model, averager), (twin, plain)):
        a.swap_out()
        m(torch.ones(4, 3)).sum().backward()  # the weights are still such that training can go on with them
    np.testing.assert_array_equal(value_of(averager, model), value_of(plain, twin))


def call(name, model, averager, make, step, inference):
    """The model and its averager after one call, made with torch.inference_mode on or not."""
    if name == "update":
        averager.swap_out()
        randomise(model, step)
    with torch.inference_mode(inference and name != "copy"):  # a model copied in it cannot be trained
        if name == "make":
            averager.swap_out()
            state = saved(averager)
            averager = make(model)
            averager.load_state_dict(state)
        elif name == "update":
            averager.update(step)
        elif name == "load_state_dict":
            averager.load_state_dict(saved(averager))
        elif name == "average_state_dict" and not averager.ready:
            pass
        elif name == "copy_to":
            averager.copy_to(model_of())
        elif name == "copy":
            averager = copy.deepcopy((model, averager))[1]
            model = averager._model
        else:
            getattr(averager, name)()
    return model, averager


@KINDS
@pytest.mark.parametrize("copied", [copy.deepcopy, COPIES["pickle"]], ids=["deepcopy", "pickle"])
def test_an_averager_that_was_copied_in_inference_mode_goes_on_outside_of_it(make, copied):
    """The copy's model is one to evaluate, and its weights stay; the averager takes them in all the same."""
    model = scalar_model()
    averager = make(model)
    feed(averager, model, [1.0, 2.0, 3.0, 4.0])
    with torch.inference_mode():
        other_model, other = copied((model, averager))
    for one in (averager, other):
        for step in range(5, 11):
            one.update(step)
    with torch.inference_mode():
        assert average_of(other, other_model) == average_of(averager, model)


def test_buffers_that_were_made_in_inference_mode_can_be_swapped():
    model = nn.BatchNorm1d(2)
    ema = EMA(model, decay=0.5)
    with torch.inference_mode():
        model.running_mean = torch.full((2,), 4.0)
    ema.update(1)
    with torch.inference_mode():
        model.running_mean = torch.full((2,), 8.0)
    ema.update(2)
    with ema.averaged():
        assert model.running_mean.tolist() == [6.0, 6.0]
    assert model.running_mean.tolist() == [8.0, 8.0]
