"""A model and its averager elsewhere: copied, or on another device; the averages go along."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.distributed.fsdp
from torch import nn

from tests.support.small_models import model_of, randomise, value_of
from tests.weight_averaging.torch.models.test_model_changes import KINDS, averaged, words
from weight_averaging.torch import EMA


@KINDS
def test_new_tracks_take_over_what_the_old_ones_held(make):
    """As for a model on another device, here on the same."""
    model, twin = model_of(), model_of()
    averager, other = make(model), make(twin)
    for step in range(1, 6):
        for m, a in ((model, averager), (twin, other)):
            randomise(m, step)
            a.update(step)
        if step == 3:
            averager._move(None)
        np.testing.assert_array_equal(value_of(averager, model), value_of(other, twin))


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@KINDS
def test_a_parameter_renamed_right_after_a_copy_goes_on(make, how, caplog):
    model = model_of()
    averager = make(model)
    gains = []
    for step in (1, 2, 3):
        if step == 3:
            pair = (model, averager)
            model, averager = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
            model[1].register_parameter("gain", model[1]._parameters.pop("weight"))
        randomise(model, step)
        averager.update(step)
        gains.append(next(p for name, p in model[1].named_parameters() if name != "bias").detach().clone())
    expected = (
        (gains[1] + gains[2]) / 2 if not isinstance(averager, EMA) else gains[0] / 4 + gains[1] / 4 + gains[2] / 2
    )
    torch.testing.assert_close(averaged(averager, model)["1.gain"], expected)
    assert words(caplog) == []


@KINDS
def test_a_model_found_on_another_device_at_a_snapshot_goes_on_there(make, monkeypatch):
    """The device is another one in name only."""
    model, twin = model_of(), model_of()
    averager, other = make(model), make(twin)
    moved = False

    def look():
        nonlocal moved
        moved = True
        averager._weights.device = torch.device("cpu")

    monkeypatch.setattr(averager._weights, "has_changed", lambda: step == 3 and not moved)
    monkeypatch.setattr(averager._weights, "look", look)
    for step in range(1, 7):
        if step == 3:
            averager._weights.device = torch.device("meta")
        for m, a in ((model, averager), (twin, other)):
            randomise(m, step)
            a.update(step)
    assert moved
    np.testing.assert_array_equal(value_of(averager, model), value_of(other, twin))


@KINDS
def test_a_model_whose_tensors_are_exchanged_in_place_goes_on(make, exchanging, caplog):
    model, twin = model_of(), model_of()
    averager, other = make(model), make(twin)
    for step in range(1, 6):
        if step == 3:
            model.double().float()
            first, second = model[0].weight, nn.Parameter(torch.zeros_like(model[0].weight))
            torch.utils.swap_tensors(first, second)
        for m, a in ((model, averager), (twin, other)):
            randomise(m, step)
            a.update(step)
    np.testing.assert_array_equal(value_of(averager, model), value_of(other, twin))
    assert words(caplog) == []


@pytest.fixture
def exchanging():
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.fixture
def mesh():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@KINDS
def test_a_model_of_dtensors_may_be_converted(make, mesh, caplog):
    """`Module.to` exchanges them in place, as when FSDP2's weights are sent to the host between two phases."""
    if not hasattr(torch.distributed.fsdp, "fully_shard"):
        pytest.skip("FSDP2 does not run on a CPU in this torch")
    model, twin = (nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)) for _ in range(2))
    torch.distributed.fsdp.fully_shard(model, mesh=mesh)
    averager, other = make(model), make(twin)
    for step in range(1, 6):
        if step == 3:
            model.double().float()
        for m, a in ((model, averager), (twin, other)):
            for number, parameter in enumerate(m.parameters()):
                nn.init.constant_(parameter, step**2 + number)
            a.update(step)
    for mine, theirs in zip(averaged(averager, model).values(), averaged(other, twin).values(), strict=True):
        assert torch.equal(mine.full_tensor(), theirs)
    assert words(caplog) == []


@KINDS
@pytest.mark.gpu
def test_a_model_that_moves_takes_its_averages_along(make):
    model, twin = model_of(), model_of()
    averager, other = make(model), make(twin)
    for step in range(1, 5):
        if step == 3:
            model.cuda()
        for m, a in ((model, averager), (twin, other)):
            randomise(m, step)
            a.update(step)
    for mine, theirs in zip(averaged(averager, model).values(), averaged(other, twin).values(), strict=True):
        torch.testing.assert_close(mine.cpu(), theirs)
